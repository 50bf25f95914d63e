"""Does the arm listen? The same scene twice, with two different objects named in the instruction.

A policy that ignores language goes to the same object both times. Only the tabletop can be asked this way.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.scene import Scene
from aegis_eval.checkpoints import PolicySource, load_policy, load_processors
from aegis_eval.devices import torch_device
from aegis_eval.statistics.intervals import Interval, wilson_interval
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json

Controller = Callable[[Sequence[TabletopEnv], Sequence[dict[str, Any]], bool], NDArray[np.float32]]
"""(envs, their observations, whether this is the first step) -> one action (4,) an env, stacked."""


@dataclass(frozen=True)
class SwapProbe:
    """Outcome over `pairs` scenes, each run with two targets.

    `followed` of the `2 * pairs` rollouts ended nearest to the object that was named; in `changed` pairs the
    swap changed which object that was. A policy that looks at the scene alone follows about half the time at most;
    it changes objects only as far as its noise does, which the two rollouts of a pair do not share. Intervals are
    Wilson's.
    """

    task: str
    split: str
    pairs: int
    followed: int
    changed: int

    @property
    def followed_rate(self) -> float:
        return self.followed / (2 * self.pairs)

    @property
    def followed_ci(self) -> Interval:
        return wilson_interval(self.followed, 2 * self.pairs)

    @property
    def changed_ci(self) -> Interval:
        return wilson_interval(self.changed, self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able counts, rate and intervals."""
        return {
            **asdict(self),
            "followed_rate": self.followed_rate,
            "followed_ci": self.followed_ci,
            "changed_ci": self.changed_ci,
        }


def read_swaps(file: Path | str) -> tuple[SwapProbe, ...]:
    """The probes in an output file of `aegis-swap`, one a task.

    Raises:
        AegisError: it is not there or holds something else.
    """
    counts = ("task", "split", "pairs", "followed", "changed")
    try:
        return tuple(
            SwapProbe(**{key: probe[key] for key in counts}) for probe in read_json(file)["tasks"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AegisError(
            f"{file} is not what aegis-swap writes ({type(error).__name__}: {error}): name its --output."
        ) from error


def probe_controller(
    controller: Controller,
    pairs: int,
    *,
    task: str = "reach",
    split: str = "test",
    seed: int = 0,
    batch_size: int = 10,
) -> SwapProbe:
    """Run `pairs` scenes, each once with its own target and once with the distractor that is most like it.

    An episode ends as the env ends it: by success, by serving the wrong object, or when its time is up.

    Args:
        controller: what moves the arm.
        pairs: number of scenes, two rollouts each.
        task: tabletop task.
        split: tabletop split the scenes come from.
        seed: of the scenes (`seed`, `seed + 1`, ...) and of what the controller draws.
        batch_size: rollouts at a time; with another one a policy draws other noise.
    """
    from lerobot.utils.random_utils import set_seed

    set_seed(seed)
    jobs = [(seed + pair, swapped) for pair in range(pairs) for swapped in (False, True)]
    followed, nearest = 0, []
    envs = [TabletopEnv(task, split) for _ in range(min(batch_size, len(jobs)))]
    try:
        for start in tqdm(range(0, len(jobs), len(envs)), desc=f"swapping {task} instructions", unit="batch"):
            chosen = jobs[start : start + len(envs)]
            infos = _run_batch(controller, envs[: len(chosen)], chosen)
            followed += sum(info["nearest_object"] == info["target"] for info in infos)
            nearest += [info["nearest_object"] for info in infos]
    finally:
        for env in envs:
            env.close()
    changed = sum(first != second for first, second in zip(nearest[::2], nearest[1::2], strict=True))
    return SwapProbe(task, split, pairs, followed, changed)


def policy_controller(source: PolicySource, device: str | None = None) -> Controller:
    """A checkpoint's policy with its own processors, as `lerobot-eval` would run it.

    Raises:
        AegisError: the source is no checkpoint of this policy.
    """
    from lerobot.envs.utils import preprocess_observation

    policy, folder = load_policy(source)
    device = str(torch_device(device or policy.config.device))
    policy.to(device)
    before, after = load_processors(policy, folder, device)

    def act(
        envs: Sequence[TabletopEnv], observations: Sequence[dict[str, Any]], first: bool
    ) -> NDArray[np.float32]:
        if first:
            policy.reset()
        batch = preprocess_observation(_stack(observations))
        batch["task"] = [env.task_description for env in envs]
        with torch.inference_mode():
            action: NDArray[np.float32] = after(policy.select_action(before(batch))).cpu().numpy()
        return action

    return act


def look_alike(scene: Scene, target: str) -> str:
    """The other object whose name shares most words with `target`."""
    words = set(target.split())
    others = [thing.name for thing in scene.objects if thing.name != target]
    return max(others, key=lambda name: len(words & set(name.split())))


def _run_batch(
    controller: Controller, envs: Sequence[TabletopEnv], jobs: Sequence[tuple[int, bool]]
) -> list[dict[str, Any]]:
    """Last info of every env; envs that are done keep their place in the batch but do not move."""
    observations, infos = [], []
    for env, (seed, swapped) in zip(envs, jobs, strict=True):
        observation, info = env.reset(seed=seed)
        if swapped:
            assert env.episode is not None
            target = look_alike(env.episode.scene, env.episode.target)
            observation, info = env.reset(seed=seed, options={"target": target})
        observations.append(observation)
        infos.append(info)
    running = set(range(len(envs)))
    first = True
    while running:
        actions = controller(envs, observations, first)
        first = False
        for index in sorted(running):
            observations[index], _, terminated, truncated, infos[index] = envs[index].step(actions[index])
            if terminated or truncated:
                running.discard(index)
    return infos


def _stack(observations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    cameras = observations[0]["pixels"]
    return {
        "pixels": {name: np.stack([item["pixels"][name] for item in observations]) for name in cameras},
        "agent_pos": np.stack([item["agent_pos"] for item in observations]),
    }
