"""The work of `aegis-swap`: rollouts in pairs of look-alike scenes, and who went where."""

import time
from pathlib import Path

from aegis_envs.tabletop.env import seeded_episode
from aegis_envs.tabletop.episodes import check_split, look_alike, retarget
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.swap import SwapConfig
from aegis_eval.controllers import Controller, PolicyController, roll_out
from aegis_eval.results.provenance import provenance
from aegis_eval.results.swap import SwapProbe
from aegis_policy.support import cli
from aegis_policy.support.json_files import write_json


def swap(config: SwapConfig) -> Path:
    """Probe every task, print a line each, write counts with their intervals.

    Raises:
        AegisError: flags that name no checkpoint, task or split, or ask for nothing.
    """
    started = time.monotonic()
    cli.require_at_least(config, pairs=1, batch_size=1, seed=0)
    tasks, split = parse_tasks(config.task, "--task"), check_split(config.split, "--split")
    controller = PolicyController(config.policy, config.device)
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
    episodes = []
    for pair in range(pairs):
        episode = seeded_episode(task, split, seed + pair)
        episodes += [episode, retarget(episode, look_alike(episode.scene, episode.target))]
    rollouts = roll_out(
        controller, episodes, seed=seed, batch_size=batch_size, title=f"swapping {task} instructions"
    )
    infos = [rollout.ended for rollout in rollouts]
    followed = sum(info["nearest_object"] == info["target"] for info in infos)
    nearest = [info["nearest_object"] for info in infos]
    changed = sum(first != second for first, second in zip(nearest[::2], nearest[1::2], strict=True))
    return SwapProbe(task, split, pairs, followed, changed)
