"""`--env.type=aegis_tabletop` as LeRobot's evaluation uses it."""

import numpy as np
import pytest
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation

from aegis_envs.tabletop.configuration import AegisTabletopEnv
from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.tasks import TASKS
from aegis_policy.support.errors import AegisError


def test_the_name_is_registered_with_lerobot():
    assert EnvConfig.get_choice_class("aegis_tabletop") is AegisTabletopEnv
    assert AegisTabletopEnv().type == "aegis_tabletop"


def test_features_carry_the_names_that_observations_get():
    config = AegisTabletopEnv(task="reach")
    features = env_to_policy_features(config)
    assert features["observation.images.front"].shape == (3, 96, 96)
    assert features["observation.images.wrist"].shape == (3, 96, 96)
    assert features["observation.state"].shape == (8,)
    assert features["action"].shape == (4,)
    envs = make_env(config, n_envs=1)
    observation, _ = envs["reach"][0].reset(seed=0)
    close_envs(envs)
    assert set(preprocess_observation(observation)) == set(features) - {"action"}


def test_there_is_one_suite_a_task():
    envs = AegisTabletopEnv().create_envs(n_envs=1)
    assert list(envs) == list(TASKS)
    for task, suite in envs.items():
        assert list(suite) == [0]
        assert suite[0].call("task") == (task,)
        assert suite[0].call("_max_episode_steps") == (TASKS[task].max_steps,)
    close_envs(envs)
    envs = AegisTabletopEnv(task="bowl,reach").create_envs(n_envs=1)
    assert list(envs) == ["reach", "bowl"]
    close_envs(envs)


@pytest.mark.parametrize("use_async_envs", [False, True])
def test_a_vector_rolls_out_with_an_instruction_and_an_outcome_for_each(use_async_envs):
    envs = AegisTabletopEnv(task="reach", split="unseen").create_envs(2, use_async_envs)
    vector = envs["reach"][0]
    observation, info = vector.reset(seed=[3, 4])
    assert observation["pixels"]["front"].shape == (2, 96, 96, 3)
    assert list(info["is_success"]) == [False, False]
    instructions = vector.call("task_description")
    assert all(target in text for target, text in zip(info["target"], instructions, strict=True))
    _, _, _, _, info = vector.step(np.zeros((2, 4), np.float32))
    assert list(info["is_success"]) == [False, False]
    close_envs(envs)


def test_success_reaches_the_place_where_lerobot_looks_for_it():
    envs = AegisTabletopEnv(task="reach").create_envs(2)
    vector = envs["reach"][0]
    vector.reset(seed=[3, 4])
    won = np.zeros(2, bool)
    for _ in range(50):
        actions = np.stack([expert_action(env.sim, env.episode) for env in vector.envs])
        _, _, terminated, _, info = vector.step(actions)
        if "final_info" in info:
            won |= np.where(terminated & ~won, info["final_info"]["is_success"], won)
        if won.all():
            break
    close_envs(envs)
    assert won.all()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"task": "juggle"}, r"--env\.task=juggle"),
        ({"split": "validation"}, r"--env\.split=validation"),
        ({"fps": 30}, r"--env\.fps=30: the arm is controlled 10 times a second"),
        ({"image_size": 0}, r"--env\.image_size=0"),
        ({"image_size": 2**31}, r"--env\.image_size=2147483648 must be from 1 to 4096"),
        ({"max_parallel_tasks": 0}, r"--env\.max_parallel_tasks=0: leave it at 1"),
        ({"episode_length": 0}, r"--env\.episode_length=0"),
    ],
)
def test_a_wrong_flag_is_named_with_the_choices(settings, names):
    with pytest.raises(AegisError, match=names):
        AegisTabletopEnv(**settings)
