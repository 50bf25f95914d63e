"""The simulated table: what the cameras see is what the scene says, and it stays put."""

import numpy as np
import pytest

from aegis_envs.tabletop.arm import HOME_XYZ
from aegis_envs.tabletop.scene import COLORS, SHAPES, Bowl, Scene, SceneObject, Zone, sample_scene
from aegis_envs.tabletop.sim import TabletopSim


@pytest.fixture(scope="module")
def sim():
    made = TabletopSim()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _same_look(sim):
    sim.reset_look()


def _centroid(sim, slot=0):
    """Row and column of the pixels that change when the object in `slot` is taken away."""
    scene = sim.scene
    with_it = sim.render().astype(int)
    rest = tuple(thing for index, thing in enumerate(scene.objects) if index != slot)
    sim.set_scene(Scene(rest, scene.zones, scene.bowl))
    rows, columns = np.nonzero(np.abs(with_it - sim.render().astype(int)).sum(-1))
    sim.set_scene(scene)
    return rows.mean(), columns.mean(), columns.max() - columns.min() + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_larger_y_is_further_right_and_larger_x_nearer_in_the_front_image(sim, shape):
    def place(x, y):
        sim.set_scene(Scene((SceneObject("red", shape, x, y),)))
        return _centroid(sim)

    middle, right, near = place(0, 0), place(0, 0.1), place(0.1, 0)
    assert right[1] > middle[1] + 10
    assert near[0] > middle[0] + 10
    assert abs(near[1] - middle[1]) < 2


def test_every_object_is_at_least_nine_pixels_wide_at_the_default_size(sim):
    for shape in SHAPES:
        for x, y in ((0.0, 0.0), (-0.14, 0.18), (0.14, -0.18)):
            sim.set_scene(Scene((SceneObject("red", shape, x, y),)))
            assert _centroid(sim)[2] >= 9


def test_the_brightest_hue_on_an_object_is_its_colour(sim):
    palette = np.array(list(COLORS.values()))
    for number, color in enumerate(COLORS):
        for shape in SHAPES:
            sim.set_scene(Scene((SceneObject(color, shape, 0.0, 0.0),)))
            row, column, _ = _centroid(sim)
            seen = sim.render()[int(row) - 2 : int(row) + 2, int(column) - 2 : int(column) + 2]
            seen = seen.reshape(-1, 3).mean(0) / 255
            directions = palette / np.linalg.norm(palette, axis=1, keepdims=True)
            # White has no hue of its own: it is told from the others by the direction of (1, 1, 1).
            assert np.argmax(directions @ (seen / np.linalg.norm(seen))) == number, (color, shape, seen)


def test_visible_pixels_count_what_the_arm_leaves_free(sim):
    sim.set_scene(Scene((SceneObject("red", "cube", 0.0, 0.0), SceneObject("blue", "cube", 0.0, 0.15))))
    free = sim.visible_pixels()
    assert min(free) > 60
    sim.set_arm((0.06, 0.0, 0.03), 0.0)
    hidden = sim.visible_pixels()
    assert hidden[0] < 0.7 * free[0]
    assert hidden[1] == free[1]


def test_a_scene_at_rest_stays_at_rest(sim):
    for seed in range(5):
        scene = sample_scene(np.random.default_rng(seed), (4, 4))
        sim.set_scene(scene)
        for _ in range(20):
            sim.move(np.zeros(3), 1.0)
        for before, after in zip(scene.objects, sim.current_scene().objects, strict=True):
            assert np.hypot(before.x - after.x, before.y - after.y) < 0.002
            assert after.yaw == pytest.approx(before.yaw, abs=0.05)


def test_objects_stay_on_the_table_whatever_the_arm_does(sim):
    rng = np.random.default_rng(0)
    for seed in range(4):
        sim.set_scene(sample_scene(np.random.default_rng(seed), (4, 4), bowl=Bowl(0.1, 0.0)))
        for _ in range(60):
            sim.move(rng.uniform(-0.04, 0.04, 3) - (0, 0, 0.01), rng.uniform())
        for slot in range(4):
            assert np.abs(sim.object_position(slot)).max() < 0.7
            assert sim.object_position(slot)[2] > 0.0
            assert sim.object_speed(slot) < 1.0


def test_a_scene_does_not_depend_on_the_one_before(sim):
    scene = sample_scene(np.random.default_rng(5), zones=[Zone("red", 0.12, 0.1)])
    sim.set_scene(scene)
    first = sim.render()
    sim.set_scene(sample_scene(np.random.default_rng(6), (4, 4), bowl=Bowl(0.1, 0.0)))
    sim.set_arm((0.1, 0.1, 0.1), 0.0)
    sim.set_scene(scene)
    np.testing.assert_array_equal(first, sim.render())


def test_moving_follows_the_command_and_stops_at_the_edge_of_the_workspace(sim):
    sim.set_scene(Scene(()))
    np.testing.assert_allclose(sim.tip_position(), HOME_XYZ, atol=1e-6)
    for _ in range(8):
        sim.move(np.array([0.02, 0.01, -0.01]), 1.0)
    for _ in range(4):
        sim.move(np.zeros(3), 1.0)
    np.testing.assert_allclose(sim.tip_position(), HOME_XYZ + np.array([0.16, 0.08, -0.08]), atol=0.003)
    for _ in range(30):
        sim.move(np.array([0.04, 0.04, -0.04]), 0.0)
    np.testing.assert_allclose(sim.tip_position(), [0.20, 0.25, 0.022], atol=0.01)
    assert sim.gripper_opening() < 0.05


def test_a_random_look_changes_the_image_and_can_be_undone(sim):
    sim.set_scene(sample_scene(np.random.default_rng(2)))
    plain = sim.render()
    sim.randomize_look(np.random.default_rng(0))
    other = sim.render()
    assert np.abs(plain.astype(int) - other).mean() > 2
    sim.randomize_look(np.random.default_rng(0))
    np.testing.assert_array_equal(other, sim.render())
    sim.reset_look()
    np.testing.assert_array_equal(plain, sim.render())


def test_images_have_the_size_asked_for_and_are_the_callers_own(sim):
    sim.set_scene(sample_scene(np.random.default_rng(2)))
    for camera in ("front", "wrist"):
        for size in (96, 48, 320):
            image = sim.render(camera, size)
            assert image.shape == (size, size, 3)
            assert image.dtype == np.uint8
            assert image.std() > 5
    first = sim.render()
    kept = first.copy()
    sim.set_arm((0.1, 0.0, 0.1), 1.0)
    sim.render()
    np.testing.assert_array_equal(first, kept)


def test_two_simulations_share_a_thread_without_seeing_each_other(sim):
    sim.set_scene(Scene((SceneObject("red", "cube", 0.0, 0.0),)))
    mine = sim.render()
    with_other = TabletopSim()
    with_other.set_scene(Scene((SceneObject("blue", "sphere", 0.1, 0.1),)))
    theirs = with_other.render()
    np.testing.assert_array_equal(mine, sim.render())
    assert (mine != theirs).any()
    with_other.close()
    np.testing.assert_array_equal(mine, sim.render())
