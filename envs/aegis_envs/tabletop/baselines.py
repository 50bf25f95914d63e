"""Arms to compare a policy's success with: the scripted expert, sent to the object it is told, or to one it chooses.

An arm that ignores its instruction succeeds whenever it happens to choose the object that was named. Nothing here
renders.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np

from aegis_envs.tabletop.env import TabletopEnv, seeded_episode
from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.tasks import TASKS, Episode

Choice = dict[str, float]
"""Name of an object -> how likely the arm goes to it; what is left out, never."""


def _named(episode: Episode) -> Choice:
    return {episode.target: 1.0}


def _central(episode: Episode) -> Choice:
    """The object nearest the table's centre, where any of them is easiest to meet."""
    return {min(episode.scene.objects, key=lambda thing: np.hypot(thing.x, thing.y)).name: 1.0}


def _any(episode: Episode) -> Choice:
    names = [thing.name for thing in episode.scene.objects]
    return dict.fromkeys(names, 1 / len(names))


ARMS: dict[str, Callable[[Episode], Choice]] = {
    "expert": _named,
    "nearest object": _central,
    "any object": _any,
}
"""Name -> where it goes. All but the expert ignore what they are told."""


def success_shares(task: str, split: str, seeds: Sequence[int]) -> dict[str, list[float]]:
    """How likely each of `ARMS` succeeds in the episode of every seed, the one that `reset(seed=)` begins.

    Raises:
        TabletopError: unknown task or split.
        SimulatorError: MuJoCo cannot be loaded.
    """
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    with closing(TabletopEnv(task, split)) as env:
        for seed in seeds:
            episode = seeded_episode(task, split, seed)
            serves = {thing.name: _succeeds(env, episode, thing.name) for thing in episode.scene.objects}
            for name, choose in ARMS.items():
                found[name].append(sum(chance * serves[chosen] for chosen, chance in choose(episode).items()))
    return found


def named_shares(episodes: Sequence[Episode]) -> dict[str, list[float]]:
    """How likely each of `ARMS` goes to the object that an episode names, without moving anything."""
    return {
        name: [choose(episode).get(episode.target, 0.0) for episode in episodes]
        for name, choose in ARMS.items()
    }


def _succeeds(env: TabletopEnv, episode: Episode, served: str) -> bool:
    """Whether `episode` ends in success when the expert does what it asks for to the object `served`."""
    env.start(episode)
    heard = replace(episode, target=served)
    for _ in range(TASKS[env.task].max_steps):
        if (outcome := env.advance(expert_action(env.sim, heard))) is not None:
            return outcome == "success"
    return False
