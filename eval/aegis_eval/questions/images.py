"""Tabletop scenes drawn for questions: the front image, the scene it shows, and where each thing is in it.

A scene is a function of (split, seed, index) alone. Light, camera, tints and the arm's pose vary; every object is
visible. Many of them at once: `aegis_eval.questions.store`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_envs.tabletop.arm import WORKSPACE_HIGH, WORKSPACE_LOW
from aegis_envs.tabletop.scene import (
    ALL_PAIRS,
    COLORS,
    MAX_OBJECTS,
    OBJECT_X,
    OBJECT_Y,
    Bowl,
    Pair,
    Scene,
    SceneObject,
    Zone,
    sample_scene,
)
from aegis_envs.tabletop.sim import IMAGE_SIZE, TabletopSim

QUESTION_SPLITS = {"train": 0, "val": 1, "test": 2}
"""Split of the questions -> its number in the seed of a scene; no scene is in two of them."""
_LEAST_VISIBLE_PIXELS = 24
_ALIKE = 0.5
"""How often an object after the first has a colour or shape in common with one before it."""


@dataclass(frozen=True)
class SceneImage:
    """`image` (96, 96, 3) uint8 of the front camera; `places` maps each item's name to (u, v) in [0, 1]."""

    image: NDArray[np.uint8]
    scene: Scene
    places: dict[str, tuple[float, float]]

    def place(self, item: SceneObject | Zone | Bowl) -> tuple[float, float]:
        """Image position of an item of the scene: u to the right, v downwards, both in [0, 1]."""
        return self.places[_key(item)]


def render_scene(sim: TabletopSim, split: str, seed: int, index: int) -> SceneImage:
    """Draw and render scene `index` of a split."""
    rng = np.random.default_rng([QUESTION_SPLITS[split], seed, index])
    while True:
        scene = _draw(rng)
        sim.set_scene(scene)
        sim.randomize_look(rng)
        sim.set_arm(rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH), float(rng.uniform()))
        if all_visible(sim):
            return SceneImage(sim.render("front", IMAGE_SIZE), scene, image_places(sim, scene))


def all_visible(sim: TabletopSim) -> bool:
    """Whether enough of every object shows in the front image for a question about it to be fair."""
    return min(sim.visible_pixels("front", IMAGE_SIZE)) >= _LEAST_VISIBLE_PIXELS


def image_places(sim: TabletopSim, scene: Scene) -> dict[str, tuple[float, float]]:
    """Where the front camera sees every item of `scene`, by name: (u, v) in [0, 1]."""
    camera = sim.model.camera("front").id
    position, axes = sim.data.cam_xpos[camera], sim.data.cam_xmat[camera].reshape(3, 3)
    focal = 0.5 / np.tan(np.deg2rad(sim.model.cam_fovy[camera]) / 2)
    items: list[SceneObject | Zone | Bowl] = [*scene.objects, *scene.zones]
    if scene.bowl is not None:
        items.append(scene.bowl)
    places = {}
    for item in items:
        height = 0.025 if isinstance(item, SceneObject) else 0.0
        x, y, z = axes.T @ (np.array([item.x, item.y, height]) - position)
        places[_key(item)] = (round(0.5 + focal * x / -z, 4), round(0.5 - focal * y / -z, 4))
    return places


def _key(item: SceneObject | Zone | Bowl) -> str:
    return "bowl" if isinstance(item, Bowl) else item.name


def _draw(rng: np.random.Generator) -> Scene:
    colors = rng.permutation(list(COLORS))[: int(rng.integers(0, 3))]
    zones: list[Zone] = []
    for color in colors:
        x, y = (float(rng.uniform(*side)) for side in (OBJECT_X, OBJECT_Y))
        if all(np.hypot(x - zone.x, y - zone.y) > 0.16 for zone in zones):
            zones.append(Zone(str(color), round(x, 4), round(y, 4)))
    bowl = None
    if rng.uniform() < 0.3:
        x, y = (float(rng.uniform(*side)) for side in (OBJECT_X, OBJECT_Y))
        if all(np.hypot(x - zone.x, y - zone.y) > 0.16 for zone in zones):
            bowl = Bowl(round(x, 4), round(y, 4))
    pairs = _pairs(rng)
    scene = sample_scene(rng, (len(pairs), len(pairs)), include=pairs, bowl=bowl)
    # Objects may stand on zones, which are only marks on the table, unless they would melt into them.
    seen_zones = tuple(zone for zone in zones if not any(_melts(thing, zone) for thing in scene.objects))
    return Scene(scene.objects, seen_zones, bowl)


def _pairs(rng: np.random.Generator) -> list[Pair]:
    """One to `MAX_OBJECTS` colour-shape pairs, all different; half of the later ones share a colour or shape with
    one before, as the distractors of the robot's scenes do."""
    pairs: list[Pair] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        candidates = [pair for pair in ALL_PAIRS if pair not in pairs]
        if pairs and rng.uniform() < _ALIKE:
            like = pairs[int(rng.integers(len(pairs)))]
            column = int(rng.integers(2))
            candidates = [pair for pair in candidates if pair[column] == like[column]] or candidates
        pairs.append(candidates[int(rng.integers(len(candidates)))])
    return pairs


def _melts(thing: SceneObject, zone: Zone) -> bool:
    return thing.color == zone.color and bool(np.hypot(thing.x - zone.x, thing.y - zone.y) < 0.12)
