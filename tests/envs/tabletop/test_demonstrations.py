"""One demonstration: the expert's own actions, whatever pushed the arm, the same again for the same slot."""

import numpy as np
import pytest

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop import demonstrations
from aegis_envs.tabletop.demonstrations import Demonstration, Recipe, demonstrate
from aegis_envs.tabletop.sim import MAX_STEP
from aegis_envs.tabletop.tasks import TASKS

CALM = Recipe(("reach", "pick"), "train", 0, 0.0, 0.0, 48)
SHOVED = Recipe(("reach", "pick"), "train", 0, 1.0, 0.0, 48)


def _unexplained_motion(demonstration):
    """Greatest motion of the fingertips, in actions, beyond what this and the last action asked for."""
    moved = np.diff(demonstration.state[:, :3], axis=0)[1:] / MAX_STEP
    asked = np.stack([demonstration.action[1:-1, :3], demonstration.action[:-2, :3]])
    return np.maximum(asked.min(0) - moved, moved - asked.max(0)).max()


def test_shoves_push_the_arm_off_its_way_but_are_not_in_the_recorded_actions():
    calm = [_unexplained_motion(demonstrate(CALM, slot)) for slot in range(4)]
    shoved = [_unexplained_motion(demonstrate(SHOVED, slot)) for slot in range(4)]
    assert max(calm) < 0.3
    assert max(shoved) > 0.5


def test_scattered_starts_lie_all_over_the_table_and_move_nothing():
    scattered = Recipe(("reach", "pick", "bowl"), "train", 0, 0.0, 1.0, 48)
    starts = []
    for slot in range(12):
        demonstration = demonstrate(scattered, slot)
        starts.append(demonstration.state[0])
        scene = demonstration.episode.scene
        placed = np.array([(thing.x, thing.y) for thing in scene.objects])
        np.testing.assert_allclose(demonstration.objects[0, :, :2], placed, atol=2e-3)
        assert np.abs(demonstration.objects[2, :, :2] - placed).max() < 5e-3
    starts = np.array(starts)
    assert (np.ptp(starts[:, :2], axis=0) > 0.2).all()
    assert starts[:, 2].min() < 0.07
    assert {round(float(opening)) for opening in starts[:, 3]} == {0, 1}


def test_a_slot_gives_the_same_demonstration_whatever_was_simulated_before():
    first = demonstrate(SHOVED, 1)
    demonstrate(SHOVED, 0)
    demonstrate(SHOVED, 3)
    again = demonstrate(SHOVED, 1)
    np.testing.assert_array_equal(first.action, again.action)
    np.testing.assert_array_equal(first.state, again.state)
    np.testing.assert_array_equal(first.images["wrist"], again.images["wrist"])
    assert (demonstrate(SHOVED, 3).state[0] != first.state[0]).any()


def test_tasks_take_turns_and_every_action_is_in_range():
    recipe = Recipe(tuple(TASKS), "unseen", 3, 0.5, 0.0, 48)
    for slot, task in enumerate(TASKS):
        demonstration = demonstrate(recipe, slot)
        assert demonstration.episode.task == task
        assert demonstration.episode.split == "unseen"
        assert np.abs(demonstration.action).max() <= 1
        assert len(demonstration.action) == len(demonstration.state) == len(demonstration.objects)
        assert demonstration.images["front"].shape == (len(demonstration.action), 48, 48, 3)


def test_a_demonstration_survives_its_file(tmp_path):
    kept = demonstrate(SHOVED, 1)
    kept.save(tmp_path / "episode.npz")
    read = Demonstration.load(tmp_path / "episode.npz")
    assert read.episode == kept.episode
    assert read.attempt == kept.attempt
    for name in ("state", "action", "objects"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    for camera, images in kept.images.items():
        np.testing.assert_array_equal(read.images[camera], images)
    assert [path.name for path in tmp_path.iterdir()] == ["episode.npz"]


def test_an_expert_that_never_succeeds_is_reported(monkeypatch):
    monkeypatch.setattr(demonstrations, "MAX_ATTEMPTS", 0)
    with pytest.raises(TabletopError, match=r"the expert failed 0 times in a row on reach at --noise=1\.0"):
        demonstrate(SHOVED, 0)
