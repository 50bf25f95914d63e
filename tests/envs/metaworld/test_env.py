"""The fast Meta-World: LeRobot's environment in all but the time it takes."""

import gc
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("metaworld")

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld import env as fast
from aegis_envs.metaworld.env import MetaworldEnv
from aegis_envs.metaworld.tasks import descriptions, groups, parse_tasks


@pytest.fixture
def env():
    env = MetaworldEnv("reach-v3", image_size=64)
    yield env
    env.close()


def test_states_rewards_and_infos_are_those_of_lerobots_environment():
    """LeRobot's runs to its end first: its renderer trusts that no other has become current."""
    from lerobot.envs.metaworld import MetaworldEnv as LeRobotEnv

    actions = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    for task in ("push-v3", "drawer-open-v3"):
        rollouts = []
        for theirs in (True, False):
            kind = {"obs_type": "pixels_agent_pos"} if theirs else {"image_size": 480}
            made = (LeRobotEnv if theirs else MetaworldEnv)(task, **kind)
            observation, info = made.reset(seed=3)
            steps = [(observation, 0.0, False, False, info)]
            steps += [made.step(action) for action in actions]
            rollouts.append((steps, made.task, made.task_description, made._max_episode_steps))
            assert made.observation_space.contains(observation)
            made.close()
        (lerobots, *their_names), (ours, *our_names) = rollouts
        assert our_names == their_names
        for theirs, mine in zip(lerobots, ours, strict=True):
            np.testing.assert_array_equal(mine[0]["agent_pos"], theirs[0]["agent_pos"])
            assert mine[0]["agent_pos"].dtype == theirs[0]["agent_pos"].dtype
            assert mine[0]["pixels"].shape == theirs[0]["pixels"].shape
            difference = np.abs(mine[0]["pixels"].astype(int) - theirs[0]["pixels"])
            assert np.median(difference) <= 2  # the same picture but for shadows and reflections
            assert difference.mean() < 12
            assert mine[1:4] == theirs[1:4]
            assert set(mine[4]) == set(theirs[4])
            assert mine[4]["is_success"] is theirs[4]["is_success"] is False


def test_a_seed_gives_the_same_episode_whatever_was_simulated_before(env):
    def episode():
        first, _ = env.reset(seed=11)
        later = [env.step(np.full(4, 0.5, np.float32))[0] for _ in range(3)]
        return [first, *later]

    once = episode()
    other, _ = env.reset(seed=12)
    for _ in range(20):
        env.advance(np.ones(4))
    again = episode()
    for mine, its in zip(once, again, strict=True):
        np.testing.assert_array_equal(mine["agent_pos"], its["agent_pos"])
        np.testing.assert_array_equal(mine["pixels"], its["pixels"])
    assert (other["pixels"] != once[0]["pixels"]).any()


def test_without_a_seed_scenes_differ(env):
    env.reset(seed=1)
    goals = [env.expert_state[-3:].copy()]
    for _ in range(2):
        env.reset()
        goals.append(env.expert_state[-3:].copy())
    assert len({tuple(goal) for goal in goals}) == 3


def test_the_expert_ends_the_episode_with_success_and_within_the_action_space(env):
    env.start(5)
    for _ in range(200):
        action = env.expert_action()
        assert env.action_space.contains(action)
        reward, truncated, info = env.advance(action)
        if info["is_success"]:
            break
    assert info["is_success"] is True
    assert not truncated
    assert reward == 10


def test_the_cap_truncates_and_success_terminates():
    env = MetaworldEnv("reach-v3", image_size=64, max_episode_steps=2)
    env.reset(seed=0)
    flags = [env.step(np.zeros(4))[2:4] for _ in range(2)]
    assert flags == [(False, False), (False, True)]
    env.close()
    assert MetaworldEnv("reach-v3")._max_episode_steps == 500
    assert MetaworldEnv("reach-v3", max_episode_steps=900)._max_episode_steps == 500


def test_a_step_is_drawn_once(env, monkeypatch):
    drawn = []
    image = fast._Stage.image
    monkeypatch.setattr(fast._Stage, "image", lambda stage: drawn.append(1) or image(stage))
    env.reset(seed=0)
    env.render()
    observation, *_ = env.step(np.zeros(4))
    assert (env.render() == observation["pixels"]).all()
    assert len(drawn) == 2


def test_shadow_maps_reflections_and_multisampling_are_off(env):
    env.reset(seed=0)
    model = env._stage.simulation.model
    assert model.vis.quality.shadowsize == model.vis.quality.offsamples == 0
    assert not model.light_castshadow.any()
    assert not model.mat_reflectance.any()
    assert model.vis.global_.offwidth == model.vis.global_.offheight == 64


def test_environments_of_several_tasks_and_the_tabletop_draw_in_turns(env):
    from aegis_envs.tabletop.env import TabletopEnv

    door, table = MetaworldEnv("door-open-v3", image_size=64), TabletopEnv("reach")
    everyone = (env, door, table)
    alone = [one.reset(seed=2)[0]["pixels"] for one in everyone]
    for one, seen in zip(everyone, alone, strict=True):
        again = one.reset(seed=2)[0]["pixels"]
        if one is table:
            again, seen = again["front"], seen["front"]
        np.testing.assert_array_equal(again, seen)
    door.close()
    np.testing.assert_array_equal(table.reset(seed=2)[0]["pixels"]["front"], alone[2]["front"])
    table.close()


def test_closing_in_another_thread_than_the_one_that_drew_spoils_nobody_s_pictures(env):
    """As `lerobot-eval --env.max_parallel_tasks=2` does."""
    other = MetaworldEnv("door-open-v3", image_size=64)
    before = env.reset(seed=2)[0]["pixels"]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(other.reset, seed=2).result()
        other.close()
    del other
    gc.collect()
    np.testing.assert_array_equal(env.reset(seed=2)[0]["pixels"], before)


def test_a_closed_environment_starts_again(env):
    before, _ = env.reset(seed=4)
    env.close()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(4))
    after, _ = env.reset(seed=4)
    np.testing.assert_array_equal(after["pixels"], before["pixels"])


def test_every_task_has_a_sentence_and_a_group():
    assert len(descriptions()) == 50
    assert sorted(groups()["all"]) == sorted(descriptions())
    graded = [task for level in ("easy", "medium", "hard", "very_hard") for task in groups()[level]]
    assert sorted(graded) == sorted(descriptions())
    assert parse_tasks("hard, reach-v3,metaworld-push-v3") == [*groups()["hard"], "reach-v3"]
    for text in ("reach", "push-v2", "", None, "reach-v3,,push-v3"):
        with pytest.raises(MetaworldError, match="is not a Meta-World task: choose from easy, medium"):
            parse_tasks(text)


def test_without_metaworld_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(MetaworldError, match=r"not installed: uv pip install '\.\[metaworld\]'"):
        MetaworldEnv("reach-v3").reset(seed=0)


def test_a_mujoco_that_metaworld_cannot_run_with_is_named(monkeypatch):
    import mujoco

    monkeypatch.setattr(mujoco, "mjNEQDATA", 12)
    with pytest.raises(MetaworldError, match=r"does not run with MuJoCo \d.*: uv pip install"):
        MetaworldEnv("reach-v3").reset(seed=0)


def test_the_environment_needs_neither_torch_nor_lerobot():
    code = (
        "import sys, aegis_envs.metaworld.demonstrations, aegis_envs.vector\n"
        "aegis_envs.metaworld.demonstrations.MetaworldEnv('reach-v3', 64).reset(seed=0)\n"
        "print([m for m in ('torch', 'lerobot', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
