"""The work of `aegis-swap`: rollouts in pairs of look-alike scenes, and who went where."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.episodes import check_split, look_alike
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.checkpoints import PolicySource, load_policy, load_processors
from aegis_eval.commands.swap import SwapConfig
from aegis_eval.devices import torch_device
from aegis_eval.results.provenance import provenance
from aegis_eval.results.swap import SwapProbe
from aegis_policy.support import cli
from aegis_policy.support.json_files import write_json

Controller = Callable[[Sequence[TabletopEnv], Sequence[dict[str, Any]], bool], NDArray[np.float32]]
"""(envs, their observations, whether this is the first step) -> one action (4,) an env, stacked."""


def swap(config: SwapConfig) -> Path:
    """Probe every task, print a line each, write counts with their intervals.

    Raises:
        AegisError: flags that name no checkpoint, task or split, or ask for nothing.
    """
    started = time.monotonic()
    cli.require_at_least(config, pairs=1, batch_size=1, seed=0)
    tasks, split = parse_tasks(config.task, "--task"), check_split(config.split, "--split")
    controller = policy_controller(config.policy, config.device)
    results = {}
    for task in tasks:
        probe = probe_controller(
            controller,
            config.pairs,
            task=task,
            split=split,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        print(_sentence(probe))
        results[task] = probe.to_dict()
    described = provenance(config.seed, time.monotonic() - started)
    write_json(config.output, {"tasks": results, "provenance": described})
    print(f"wrote {config.output}")
    return config.output


def _sentence(probe: SwapProbe) -> str:
    low, high = probe.followed_ci
    return (
        f"{probe.task}: {probe.followed} of {2 * probe.pairs} rollouts ended at the named object "
        f"({100 * low:.0f} to {100 * high:.0f} %); the swap changed the object in {probe.changed} of "
        f"{probe.pairs} scenes"
    )


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
