"""What moves the arm through episodes of the tabletop that a command has chosen: a policy, or anything like one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import batched
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.tasks import Episode
from aegis_eval.checkpoints import PolicySource, load_policy, load_processors
from aegis_eval.devices import torch_device

Controller = Callable[[Sequence[TabletopEnv], Sequence[dict[str, Any]], bool], NDArray[np.float32]]
"""(envs, their observations, whether this is the first step) -> one action (4,) an env, stacked."""


class PolicyController:
    """A checkpoint's policy with its own processors, as `lerobot-eval` would run it.

    Raises:
        AegisError: the source is no checkpoint of this policy.
    """

    def __init__(self, source: PolicySource, device: str | None = None) -> None:
        self.policy, folder = load_policy(source)
        device = str(torch_device(device or self.policy.config.device))
        self.policy.to(device)
        self._before, self._after = load_processors(self.policy, folder, device)

    def __call__(
        self, envs: Sequence[TabletopEnv], observations: Sequence[dict[str, Any]], first: bool
    ) -> NDArray[np.float32]:
        from lerobot.envs.utils import preprocess_observation

        if first:
            self.policy.reset()
        batch = preprocess_observation(_stack(observations))
        batch["task"] = [env.task_description for env in envs]
        with torch.inference_mode():
            chosen = self._after(self.policy.select_action(self._before(batch)))
        action: NDArray[np.float32] = chosen.cpu().numpy()
        return action


@dataclass(frozen=True)
class Rollout:
    """How an episode began and ended: the first observation, and the env's last info."""

    begun: dict[str, Any]
    ended: dict[str, Any]


def roll_out(
    controller: Controller, episodes: Sequence[Episode], *, seed: int, batch_size: int, title: str
) -> Iterator[Rollout]:
    """Run episodes of one task; each ends as the env ends it.

    Args:
        controller: what moves the arm.
        episodes: of one task and split.
        seed: of what the controller draws.
        batch_size: rollouts at a time; with another one a policy draws other noise.
        title: of the bar.
    """
    from lerobot.utils.random_utils import set_seed

    set_seed(seed)
    task, split = episodes[0].task, episodes[0].split
    envs = [TabletopEnv(task, split) for _ in range(min(batch_size, len(episodes)))]
    try:
        batches = list(batched(episodes, len(envs)))
        for batch in tqdm(batches, desc=title, unit="batch"):
            yield from _together(controller, envs[: len(batch)], batch)
    finally:
        for env in envs:
            env.close()


def _together(
    controller: Controller, envs: Sequence[TabletopEnv], episodes: Sequence[Episode]
) -> list[Rollout]:
    """Envs that are done keep their place in the batch but do not move."""
    begun = [env.reset(options={"episode": episode})[0] for env, episode in zip(envs, episodes, strict=True)]
    observations, ended = list(begun), [dict[str, Any]() for _ in envs]
    running = set(range(len(envs)))
    first = True
    while running:
        actions = controller(envs, observations, first)
        first = False
        for index in sorted(running):
            observations[index], _, terminated, truncated, ended[index] = envs[index].step(actions[index])
            if terminated or truncated:
                running.discard(index)
    return [Rollout(*each) for each in zip(begun, ended, strict=True)]


def _stack(observations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cameras = observations[0]["pixels"]
    return {
        "pixels": {name: np.stack([item["pixels"][name] for item in observations]) for name in cameras},
        "agent_pos": np.stack([item["agent_pos"] for item in observations]),
    }
