"""The gymnasium environment: the interface, determinism, and success that needs the instruction."""

import json
import os
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import aegis_envs
from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.env import TabletopEnv, seeded_episode
from aegis_envs.tabletop.episodes import retarget
from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.tasks import TASKS


def _rollout(env, act):
    """Step with `act()` until the episode ends; returns the last info and the number of steps."""
    for count in range(1, 200):
        _, reward, terminated, truncated, info = env.step(act())
        assert reward == float(info["is_success"])
        if terminated or truncated:
            return info, count
    raise AssertionError("the episode does not end")


def _expert(env, episode=None):
    return lambda: expert_action(env.sim, episode or env.episode)


@pytest.mark.parametrize("task", TASKS)
def test_the_registered_environment_passes_gymnasiums_checks(task):
    env = gym.make(f"aegis_tabletop/{task.capitalize()}-v0")
    try:
        check_env(env.unwrapped)
    finally:
        env.close()
    assert aegis_envs.__doc__


@pytest.mark.parametrize("split", ["train", "unseen"])
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_succeeds_in_nineteen_of_twenty_episodes(task, split):
    env = TabletopEnv(task, split)
    successes = 0
    for seed in range(20):
        env.reset(seed=seed)
        outcome, steps = None, 0
        while outcome is None and steps < env._max_episode_steps:
            outcome = env.advance(expert_action(env.sim, env.episode))
            steps += 1
        successes += outcome == "success"
        assert steps >= 8
    env.close()
    assert successes >= 19


@pytest.mark.parametrize("task", TASKS)
def test_doing_the_request_to_another_object_fails(task):
    env = TabletopEnv(task)
    failures = 0
    for seed in range(4):
        env.reset(seed=seed)
        other = next(name.name for name in env.episode.scene.objects if name.name != env.episode.target)
        info, _ = _rollout(env, _expert(env, retarget(env.episode, other)))
        assert not info["is_success"]
        failures += info["wrong_object"]
    env.close()
    assert failures >= 2


def test_the_seed_decides_the_episode_and_the_split_is_part_of_it():
    def first(split, seed):
        env = TabletopEnv("pick", split)
        observation, info = env.reset(seed=seed)
        env.close()
        assert env.episode == seeded_episode("pick", split, seed)
        return observation, info

    observation, info = first("train", 7)
    again, info_again = first("train", 7)
    np.testing.assert_array_equal(observation["pixels"]["front"], again["pixels"]["front"])
    assert info == info_again
    assert first("train", 8)[1]["scene"] != info["scene"]
    assert first("test", 7)[1]["scene"] != info["scene"]


def test_the_same_actions_give_the_same_frames():
    def frames():
        env = TabletopEnv("push")
        env.reset(seed=3)
        rng = np.random.default_rng(0)
        last = [env.step(env_action)[0] for env_action in rng.uniform(-1, 1, (15, 4)).astype(np.float32)][-1]
        env.close()
        return last

    one, two = frames(), frames()
    np.testing.assert_array_equal(one["agent_pos"], two["agent_pos"])
    np.testing.assert_array_equal(one["pixels"]["wrist"], two["pixels"]["wrist"])


def test_a_picture_does_not_know_the_episodes_before_it():
    used = TabletopEnv("reach", "train")
    for seed in range(12):
        fresh = TabletopEnv("reach", "train")
        observations = [env.reset(seed=seed)[0]["pixels"] for env in (fresh, used)]
        for camera in observations[0]:
            np.testing.assert_array_equal(observations[0][camera], observations[1][camera])
        assert fresh.sim.model.stat.extent == used.sim.model.stat.extent
        fresh.close()
    used.close()


def test_swapping_the_target_shows_the_same_picture_under_another_instruction():
    env = TabletopEnv("reach")
    observation, info = env.reset(seed=5)
    scene = info["scene"]
    other = next(
        f"{thing['color']} {thing['shape']}"
        for thing in scene["objects"]
        if f"{thing['color']} {thing['shape']}" != info["target"]
    )
    swapped, swapped_info = env.reset(seed=5, options={"target": other})
    np.testing.assert_array_equal(observation["pixels"]["front"], swapped["pixels"]["front"])
    assert swapped_info["target"] == other
    assert env.task_description == swapped_info["instruction"] != info["instruction"]
    info, _ = _rollout(env, _expert(env))
    assert info["is_success"]
    assert info["nearest_object"] == other
    assert info["nearest_distance"] < 0.03
    with pytest.raises(TabletopError, match="pink cone"):
        env.reset(seed=5, options={"target": "pink cone"})
    env.close()


def test_a_scene_described_in_json_can_be_set():
    env = TabletopEnv("bowl")
    _, info = env.reset(seed=1)
    described = json.loads(json.dumps(info["scene"]))
    target = "{color} {shape}".format(**described["objects"][-1])
    _, info = env.reset(seed=2, options={"scene": described, "target": target})
    assert info["target"] == target
    assert info["instruction"] == f"put the {target} in the bowl"
    placed = info["scene"]["objects"][0]
    assert (placed["x"], placed["y"]) == pytest.approx(
        (described["objects"][0]["x"], described["objects"][0]["y"])
    )
    env.close()


def test_a_scene_without_the_zone_or_bowl_that_a_task_needs_is_named():
    env = TabletopEnv("push")
    _, info = env.reset(seed=1)
    with pytest.raises(TabletopError, match=r"no white zone, which push needs"):
        env.reset(options={"scene": {**info["scene"], "zones": []}, "zone": "white"})
    env.close()
    env = TabletopEnv("bowl")
    _, info = env.reset(seed=0)
    with pytest.raises(TabletopError, match="no bowl, which bowl needs"):
        env.reset(options={"scene": {**info["scene"], "bowl": None}})
    env.close()


def test_standing_still_runs_out_of_time_and_fails():
    env = TabletopEnv("reach", max_episode_steps=6)
    env.reset(seed=0)
    info, steps = _rollout(env, lambda: np.zeros(4, np.float32))
    env.close()
    assert steps == 6
    assert not info["is_success"]
    assert not info["wrong_object"]


def test_a_flying_gripper_does_not_count_as_reaching():
    env = TabletopEnv("reach")
    env.reset(seed=0)
    target = env.sim.object_position(env.episode.scene.index(env.episode.target))
    env.sim.set_arm((target[0], target[1], 0.2), 1.0)
    for _ in range(8):
        assert env.advance(np.array([0, 0, 0, 1])) is None
    env.close()


def test_stepping_before_reset_is_an_error():
    env = TabletopEnv("reach")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4))


def test_the_video_frame_is_larger_than_the_observation_and_says_what_the_policy_was_told():
    env = TabletopEnv("reach")
    env.reset(seed=0)
    told = env.render()
    env.task_description = "push the magenta cylinder to the yellow zone, and then do nothing more"
    otherwise = env.render()
    assert told.shape == (320, 320, 3)
    rows, columns = np.nonzero((told != otherwise).any(-1))
    assert len(rows) > 100, "another sentence, another picture"
    assert rows.max() < 26, "and only where the sentence is written"
    assert columns.min() > 0 and columns.max() < 319, "which lies within the picture"
    env.close()


def test_the_environment_needs_neither_torch_nor_lerobot():
    code = (
        "import sys, aegis_envs.tabletop.env, aegis_envs.tabletop.demonstrations;"
        "print([m for m in ('torch', 'lerobot', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"__EGL_VENDOR_LIBRARY_DIRS": "/nowhere"},
            r"MUJOCO_GL=egl .*: none of .* draws here; install EGL .*libegl1",
        ),
        ({"MUJOCO_EGL_DEVICE_ID": "none"}, r"MUJOCO_GL=egl .*: unset MUJOCO_EGL_DEVICE_ID, which works here"),
        ({"MUJOCO_GL": "vulkan"}, r"MUJOCO_GL=vulkan .*: set MUJOCO_GL=egl, which works here"),
    ],
)
def test_a_machine_that_does_not_draw_gets_one_sentence(variables, sentence):
    code = (
        "from aegis_envs.tabletop.env import TabletopEnv; from aegis_envs.errors import SimulatorError\n"
        "try:\n    TabletopEnv('reach').reset(seed=0)\nexcept SimulatorError as error:\n    print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MUJOCO_GL": "egl", **variables},
    )
    assert done.stderr == ""
    assert re.fullmatch(f"off-screen rendering is not available with {sentence}.*\\.\n", done.stdout)


def test_images_come_even_where_mujoco_was_imported_first_without_a_platform():
    code = (
        "import mujoco; from aegis_envs.tabletop.env import TabletopEnv;"
        "print(TabletopEnv().reset(seed=0)[0]['pixels']['front'].std())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) > 5
