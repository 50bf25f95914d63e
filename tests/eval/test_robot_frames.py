"""Robot frames are the front camera's, and what they show stands where their scene says."""

import numpy as np
import pytest

from aegis_envs.demonstrations import demonstrate
from aegis_envs.sim import IMAGE_SIZE, TabletopSim
from aegis_eval import robot_frames
from aegis_eval.robot_frames import robot_frame
from aegis_eval.scene_images import image_places


@pytest.fixture(scope="module")
def sim():
    sim = TabletopSim()
    yield sim
    sim.close()


def test_a_frame_shows_its_scene(sim: TabletopSim) -> None:
    for index in range(4):
        photo = robot_frame(sim, "test", 0, index)
        assert photo.image.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        # `sim` stands as it did when the frame was accepted: what it draws of the objects is what was recorded.
        drawn = sim.render("front", IMAGE_SIZE).astype(int)
        assert np.abs(drawn - photo.image).mean() < 6
        assert photo.places == image_places(sim, photo.scene)
        assert all(0 < u < 1 and 0 < v < 1 for u, v in photo.places.values())


def test_frames_repeat_and_splits_differ(sim: TabletopSim) -> None:
    one, again = (robot_frame(sim, "test", 0, 1) for _ in range(2))
    assert np.array_equal(one.image, again.image) and one.scene == again.scene
    others = [
        robot_frame(sim, split, seed, 1).scene for split, seed in (("train", 0), ("val", 0), ("test", 1))
    ]
    assert one.scene not in others


def test_nothing_is_asked_about_an_object_in_the_gripper() -> None:
    recipe = robot_frames.Recipe(("pick",), "test", 5, 0.0, IMAGE_SIZE)
    demonstration = demonstrate(recipe, 0)
    assert robot_frames._standing_scene(demonstration, 0) == demonstration.scene_at(0)
    assert robot_frames._standing_scene(demonstration, len(demonstration.action) - 1) is None
