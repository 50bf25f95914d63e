"""Drawing episodes: a scene, a target, an instruction, within a split.

Every scene holds a distractor that differs from the target in exactly one of colour and shape, so an episode
is won by understanding the instruction.
"""

from dataclasses import replace

import numpy as np

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop import arm
from aegis_envs.tabletop.scene import (
    COLORS,
    MAX_OBJECTS,
    SHAPES,
    TRAIN_PAIRS,
    UNSEEN_PAIRS,
    Bowl,
    Pair,
    Scene,
    SceneObject,
    Zone,
    sample_scene,
)
from aegis_envs.tabletop.tasks import TASKS, Episode

SPLITS: dict[str, tuple[Pair, ...]] = {"train": TRAIN_PAIRS, "test": TRAIN_PAIRS, "unseen": UNSEEN_PAIRS}
"""Which colour-shape pairs each split instructs; `train` and `test` never share a scene."""

_SAMPLING_ATTEMPTS = 500


def check_split(split: str, flag: str = "--env.split") -> str:
    """Return `split` if it exists.

    Raises:
        TabletopError: it does not; names the flag it was given with.
    """
    if split not in SPLITS:
        raise TabletopError(f"{flag}={split} is not a tabletop split: choose from {', '.join(SPLITS)}.")
    return split


def sample_episode(task_name: str, split: str, rng: np.random.Generator) -> Episode:
    """Draw a scene with a target, a distractor that differs from it in one word, and an instruction."""
    task = TASKS[task_name]
    pairs = SPLITS[check_split(split)]
    for _ in range(_SAMPLING_ATTEMPTS):
        target = pairs[int(rng.integers(len(pairs)))]
        zones = _sample_zones(rng) if task.zones else ()
        bowl = Bowl(_uniform(rng, 0.02, 0.11), _uniform(rng, -0.12, 0.12)) if task.bowl else None
        scene = sample_scene(
            rng,
            (2, MAX_OBJECTS),
            include=(target, _one_word_away(target, rng)),
            zones=zones,
            bowl=bowl,
            x_range=task.x_range,
        )
        scene = _recolored_zones(scene, rng)
        zone = scene.zones[int(rng.integers(len(scene.zones)))] if task.zones else None
        if zone is None or _push_is_clear(scene.objects[0], scene.objects[1:], zone):
            break
    shuffled = replace(
        scene, objects=tuple(scene.objects[int(i)] for i in rng.permutation(len(scene.objects)))
    )
    name = scene.objects[0].name
    zone_color = zone.color if zone else None
    jitter = _uniform(rng, 0, 0.05), _uniform(rng, -0.08, 0.08), _uniform(rng, -0.03, 0.04)
    start = arm.HOME_XYZ + np.array(jitter)
    return Episode(
        task=task_name,
        split=split,
        scene=shuffled,
        target=name,
        zone=zone_color,
        instruction=task.phrase(rng, name, zone_color),
        start=(float(start[0]), float(start[1]), float(start[2])),
    )


def look_alike(scene: Scene, target: str) -> str:
    """The other object whose name shares most words with `target`."""
    words = set(target.split())
    others = [thing.name for thing in scene.objects if thing.name != target]
    return max(others, key=lambda name: len(words & set(name.split())))


def retarget(episode: Episode, target: str, zone: str | None = None) -> Episode:
    """The same scene and phrasing with another target (and, for a push, another zone).

    Raises:
        TabletopError: the scene holds no such object or zone.
    """
    episode.scene.index(target)
    new_zone = zone or episode.zone
    if new_zone is not None and new_zone not in [item.color for item in episode.scene.zones]:
        raise TabletopError(f"there is no {new_zone} zone in this scene: choose one of its zones.")
    instruction = episode.instruction.replace(f"the {episode.target}", f"the {target}")
    if new_zone is not None:
        instruction = instruction.replace(f"the {episode.zone} zone", f"the {new_zone} zone")
    return replace(episode, target=target, zone=new_zone, instruction=instruction)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


def _one_word_away(pair: Pair, rng: np.random.Generator) -> Pair:
    """A pair with the same colour and another shape, or the same shape and another colour."""
    color, shape = pair
    if rng.random() < 0.5:
        others = [name for name in SHAPES if name != shape]
        return color, others[int(rng.integers(len(others)))]
    others = [name for name in COLORS if name != color]
    return others[int(rng.integers(len(others)))], shape


def _sample_zones(rng: np.random.Generator) -> tuple[Zone, Zone]:
    """One zone on each side, near the front camera; their colours are drawn once the objects are known."""
    return (
        Zone("red", _uniform(rng, 0.11, 0.13), _uniform(rng, -0.13, -0.09)),
        Zone("red", _uniform(rng, 0.11, 0.13), _uniform(rng, 0.09, 0.13)),
    )


def _recolored_zones(scene: Scene, rng: np.random.Generator) -> Scene:
    """Zones in two colours that no object has."""
    taken = {thing.color for thing in scene.objects}
    free = [color for color in COLORS if color not in taken]
    picks = rng.choice(len(free), size=len(scene.zones), replace=False)
    zones = tuple(replace(zone, color=free[int(i)]) for zone, i in zip(scene.zones, picks, strict=True))
    return replace(scene, zones=zones)


def _push_is_clear(target: SceneObject, others: tuple[SceneObject, ...], zone: Zone) -> bool:
    """No other object on the way from behind the target to the zone."""
    start, end = np.array([target.x, target.y]), np.array([zone.x, zone.y])
    way = end - start
    length = float(np.linalg.norm(way))
    way /= length
    for thing in others:
        offset = np.array([thing.x, thing.y]) - start
        along = float(np.clip(offset @ way, -0.08, length))
        if np.linalg.norm(offset - along * way) < 0.08:
            return False
    return True
