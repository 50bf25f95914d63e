"""`--env.type=aegis_metaworld` as LeRobot's evaluation uses it."""

import numpy as np
import pytest
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env
from lerobot.envs.utils import close_envs, env_to_policy_features, preprocess_observation

pytest.importorskip("metaworld")

from aegis_envs.metaworld.configuration import AegisMetaworldEnv
from aegis_envs.metaworld.tasks import groups
from aegis_envs.vector import LazyAsyncVectorEnv
from aegis_policy.support.errors import AegisError


def test_the_name_is_registered_with_lerobot():
    assert EnvConfig.get_choice_class("aegis_metaworld") is AegisMetaworldEnv
    assert AegisMetaworldEnv().type == "aegis_metaworld"


def test_features_carry_the_names_that_observations_get_here_and_in_lerobots_own():
    features = env_to_policy_features(AegisMetaworldEnv(task="reach-v3", image_size=96))
    assert {key: feature.shape for key, feature in features.items()} == {
        "observation.image": (3, 96, 96),
        "observation.state": (4,),
        "action": (4,),
    }
    envs = make_env(AegisMetaworldEnv(task="reach-v3", image_size=96), n_envs=1)
    observation, _ = envs["reach-v3"][0].reset(seed=0)
    close_envs(envs)
    seen = preprocess_observation(observation)
    assert {key: tuple(value.shape[1:]) for key, value in seen.items()} == {
        "observation.image": (3, 96, 96),
        "observation.state": (4,),
    }
    assert set(env_to_policy_features(EnvConfig.get_choice_class("metaworld")())) == set(features)


def test_there_is_one_suite_a_task():
    envs = AegisMetaworldEnv(task="hard,reach-v3").create_envs(n_envs=2)
    assert list(envs) == [*groups()["hard"], "reach-v3"]
    for task, suite in envs.items():
        assert list(suite) == [0]
        assert suite[0].call("task") == (task, task)
        assert suite[0].call("_max_episode_steps") == (500, 500)
    close_envs(envs)


def test_success_reaches_the_place_where_lerobot_looks_for_it():
    vector = AegisMetaworldEnv(task="reach-v3", image_size=64).create_envs(2)["reach-v3"][0]
    vector.reset(seed=[3, 4])
    won = np.zeros(2, bool)
    for _ in range(100):
        _, _, terminated, _, info = vector.step(np.stack([env.expert_action() for env in vector.envs]))
        if "final_info" in info:
            won |= terminated & info["final_info"]["is_success"]
        if won.all():
            break
    vector.close()
    assert won.all()


def test_worker_processes_start_at_the_first_use_and_give_the_same_observations():
    config = AegisMetaworldEnv(task="reach-v3", image_size=64)
    vector = config.create_envs(2, use_async_envs=True)["reach-v3"][0]
    assert isinstance(vector, LazyAsyncVectorEnv)
    assert vector._running is None
    here = config.create_envs(2)["reach-v3"][0]
    assert vector.single_observation_space == here.single_observation_space
    seen, _ = vector.reset(seed=[3, 4])
    expected, _ = here.reset(seed=[3, 4])
    np.testing.assert_array_equal(seen["pixels"], expected["pixels"])
    np.testing.assert_array_equal(seen["agent_pos"], expected["agent_pos"])
    assert vector.call("task_description") == here.call("task_description")
    assert vector.get_attr("task") == ("reach-v3", "reach-v3")
    actions = np.full((2, 4), 0.3, np.float32)
    np.testing.assert_array_equal(vector.step(actions)[0]["agent_pos"], here.step(actions)[0]["agent_pos"])
    for one in (vector, here):
        one.close()
    assert vector._running is None


def test_without_metaworld_lerobot_eval_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(AegisError, match=r"uv pip install '\.\[metaworld\]'"):
        AegisMetaworldEnv(task="reach-v3").create_envs(1)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"task": "juggle-v3"}, r"--env\.task=juggle-v3"),
        ({"fps": 30}, r"--env\.fps=30: Meta-World is controlled 80 times a second"),
        ({"image_size": 62}, r"--env\.image_size=62 must be an even number from 64 to 480"),
        ({"image_size": 129}, r"--env\.image_size=129"),
        ({"image_size": 512}, r"--env\.image_size=512"),
        ({"episode_length": 0}, r"--env\.episode_length=0"),
        ({"episode_length": 501}, r"--env\.episode_length=501 must be from 1 to 500"),
    ],
)
def test_a_wrong_flag_is_named_with_the_choices(settings, names):
    with pytest.raises(AegisError, match=names):
        AegisMetaworldEnv(**settings)
