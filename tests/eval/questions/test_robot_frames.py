"""Robot frames are the front camera's, and what they show stands where their scene says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from aegis_envs.tabletop.demonstrations import demonstrate
from aegis_envs.tabletop.sim import IMAGE_SIZE, TabletopSim
from aegis_eval.questions import robot_frames
from aegis_eval.questions.images import SceneImage, render_scene
from aegis_eval.questions.robot_frames import robot_frame


@pytest.fixture(scope="module")
def sim():
    sim = TabletopSim()
    yield sim
    sim.close()


def around(image: NDArray[np.uint8], photo: SceneImage) -> list[NDArray[np.int64]]:
    """Seven by seven pixels about every object of the photo's scene."""
    windows = []
    for thing in photo.scene.objects:
        column, row = (int(part * IMAGE_SIZE) for part in photo.place(thing))
        windows.append(image[row - 3 : row + 4, column - 3 : column + 4].astype(int))
    return windows


def test_objects_are_where_the_scene_of_a_frame_says(sim: TabletopSim) -> None:
    photos, drawn = [], []
    for index in range(4):
        render_scene(sim, "test", 0, index)  # leaves another look behind
        photos.append(robot_frame(sim, "test", 0, index))
        assert photos[-1].image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        # `sim` stands as it did when the frame was accepted: the scene drawn once more.
        drawn.append(sim.render("front", IMAGE_SIZE))

    def difference(index: int, other: int) -> list[float]:
        pairs = zip(
            around(photos[index].image, photos[index]), around(drawn[other], photos[index]), strict=True
        )
        return [float(np.abs(ours - theirs).mean()) for ours, theirs in pairs]

    for index in range(4):
        assert max(difference(index, index)) < 5
        assert max(difference(index, index - 1)) > 20, "any other scene would have passed"


def test_frames_repeat_and_splits_differ(sim: TabletopSim) -> None:
    one, again = (robot_frame(sim, "test", 0, 1) for _ in range(2))
    assert np.array_equal(one.image, again.image) and one.scene == again.scene
    others = [
        robot_frame(sim, split, seed, 1).scene for split, seed in (("train", 0), ("val", 0), ("test", 1))
    ]
    assert one.scene not in others


def test_nothing_is_asked_about_an_object_in_the_gripper() -> None:
    recipe = robot_frames.Recipe(("pick",), "test", 5, 0.0, 0.0, IMAGE_SIZE)
    demonstration = demonstrate(recipe, 0)
    assert robot_frames._standing_scene(demonstration, 0) == demonstration.scene_at(0)
    assert robot_frames._standing_scene(demonstration, len(demonstration.action) - 1) is None
