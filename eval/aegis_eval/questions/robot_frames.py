"""Front-camera frames of robot episodes with their scene: does a VLM still understand what the robot sees at work?

A frame is one moment of one of the scripted expert's demonstrations, as `aegis-record` writes them, in which all
objects stand on the table and can be seen.
"""

from itertools import count

import numpy as np

from aegis_envs.tabletop.demonstrations import Demonstration, Recipe, demonstrate
from aegis_envs.tabletop.scene import Scene
from aegis_envs.tabletop.sim import IMAGE_SIZE, TabletopSim, object_height
from aegis_envs.tabletop.tasks import TASKS
from aegis_eval.questions.images import QUESTION_SPLITS, SceneImage, all_visible, image_places

_RETRY = 1_000_003
_STANDS = 0.01
"""How far above its place on the table an object counts as standing, metres."""


def robot_frame(sim: TabletopSim, split: str, seed: int, index: int) -> SceneImage:
    """One random frame of demonstration `index`; the tasks take turns.

    `train` shows episodes of the environment's training split, `val` and `test` of its test split, none of which
    has the seed of any other or of a recording made with a seed below a million.
    """
    rng = np.random.default_rng([QUESTION_SPLITS[split], seed, index])
    recipe = Recipe(
        tasks=tuple(TASKS),
        split="train" if split == "train" else "test",
        seed=1_000_000 * (1 + QUESTION_SPLITS[split]) + seed,
        noise=0.5,
        scatter=0.0,
        image_size=IMAGE_SIZE,
    )
    for attempt in count():
        demonstration = demonstrate(recipe, index + _RETRY * len(TASKS) * attempt)
        for frame in rng.permutation(len(demonstration.action)):
            scene = _standing_scene(demonstration, int(frame))
            if scene is None:
                continue
            sim.reset_look()
            sim.set_scene(scene)
            sim.set_arm(demonstration.state[frame, :3], float(demonstration.state[frame, 3]))
            if all_visible(sim):
                return SceneImage(demonstration.images["front"][frame], scene, image_places(sim, scene))
    raise AssertionError("unreachable")


def _standing_scene(demonstration: Demonstration, frame: int) -> Scene | None:
    """The scene of a frame, or None while an object is off the table."""
    scene = demonstration.scene_at(frame)
    heights = demonstration.objects[frame, :, 2]
    stands = all(
        abs(height - object_height(thing)) < _STANDS
        for height, thing in zip(heights, scene.objects, strict=True)
    )
    return scene if stands else None
