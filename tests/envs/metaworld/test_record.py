"""`aegis-record --env.type=metaworld` and `--env.type=aegis_metaworld`."""

import json
import sys

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

pytest.importorskip("metaworld")

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld import demonstrations as metaworld_demonstrations
from aegis_envs.metaworld.demonstrations import MetaworldDemonstration, MetaworldRecipe, demonstrate
from aegis_envs.metaworld.env import MetaworldEnv
from aegis_envs.metaworld.tasks import descriptions
from aegis_envs.recording.recorder import record
from aegis_envs.recording.sources import RecordConfig, RecordedLeRobotMetaworld, RecordedMetaworld
from aegis_policy.support.errors import AegisError

RECIPE = MetaworldRecipe(("reach-v3", "drawer-close-v3"), seed=0, noise=0.0, image_size=64)


def _config(root, env=None, **settings):
    env = env or RecordedMetaworld(task="reach-v3,drawer-close-v3", image_size=64)
    return RecordConfig(env=env, root=root, **{"episodes": 3, "num_workers": 1, "seed": 5, **settings})


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Three episodes (reach, drawer-close, reach), recorded by one worker."""
    root = tmp_path_factory.mktemp("data") / "metaworld"
    record(_config(root))
    return root


def _frames(root):
    dataset = LeRobotDataset("local/any", root=root)
    return [dataset[index] for index in range(len(dataset))]


def test_the_dataset_holds_what_lerobots_environment_shows_a_policy(recording):
    dataset = LeRobotDataset("local/any", root=recording)
    assert dataset.fps == 80
    assert dataset.num_episodes == 3
    frames = _frames(recording)
    assert frames[0]["observation.image"].shape == (3, 64, 64)
    assert frames[0]["observation.state"].shape == (4,)
    assert frames[0]["action"].shape == (4,)
    tasks = [frame["task"] for frame in frames]
    assert list(dict.fromkeys(tasks)) == [descriptions()["reach-v3"], descriptions()["drawer-close-v3"]]
    actions = np.stack([frame["action"] for frame in frames])
    assert np.abs(actions).max() == 1


def test_a_recorded_episode_can_be_played_again_and_ends_in_success(recording):
    episode = json.loads((recording / "recording.json").read_text())["per_episode"][1]
    assert episode["env_seed"] >= 2**20
    frames = [frame for frame in _frames(recording) if frame["episode_index"] == 1]
    assert len(frames) == episode["length"]
    env = MetaworldEnv(episode["task"], image_size=64)
    observation, _ = env.reset(seed=episode["env_seed"])
    for frame in frames:
        picture = (frame["observation.image"].numpy().transpose(1, 2, 0) * 255).round()
        np.testing.assert_array_equal(picture, observation["pixels"])
        np.testing.assert_allclose(frame["observation.state"], observation["agent_pos"], rtol=1e-6)
        observation, _, terminated, _, info = env.step(frame["action"].numpy())
    assert terminated
    assert info["is_success"]
    env.close()


def test_provenance_says_how_every_episode_came_to_be(recording):
    described = json.loads((recording / "recording.json").read_text())
    assert (described["simulator"], described["seed"], described["noise"]) == ("metaworld", 5, 0.0)
    assert described["tasks"] == ["reach-v3", "drawer-close-v3"]
    assert set(described["versions"]) >= {"lerobot", "mujoco", "metaworld", "lerobot_policy_aegis"}
    assert [item["task"] for item in described["per_episode"]] == ["reach-v3", "drawer-close-v3", "reach-v3"]
    assert not (recording / "scenes.jsonl").exists()


def test_lerobots_own_configuration_records_the_same(recording, tmp_path):
    env = RecordedLeRobotMetaworld(task="metaworld-reach-v3,drawer-close-v3")
    record(_config(tmp_path / "lerobots", env, image_size=64, num_workers=2))
    for mine, its in zip(_frames(recording), _frames(tmp_path / "lerobots"), strict=True):
        assert mine["task"] == its["task"]
        for key in ("observation.image", "observation.state", "action"):
            assert (mine[key] == its[key]).all(), key


def test_a_complete_recording_is_left_alone_and_another_refused(recording, capsys):
    record(_config(recording))
    assert "already holds this recording" in capsys.readouterr().out
    with pytest.raises(AegisError, match=r"other seed: choose another folder"):
        record(_config(recording, seed=6))
    with pytest.raises(AegisError, match=r"other tasks, split, noise, scatter, image_size"):
        record(RecordConfig(root=recording, episodes=3, seed=5))


def test_finished_episodes_are_not_simulated_again(tmp_path):
    root = tmp_path / "metaworld"
    staging = tmp_path / ".metaworld.recording"
    recipe = MetaworldRecipe(("reach-v3", "drawer-close-v3"), 5, 0.0, 64)
    staging.mkdir()
    (staging / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    done = metaworld_demonstrations.demonstrate(recipe, 1)
    done.state[:] = 0.25  # no hand is there
    done.save(staging / "episode_000001.npz")
    record(_config(root))
    kept = [frame for frame in _frames(root) if frame["episode_index"] == 1]
    assert len(kept) == len(done.state) and all((frame["observation.state"] == 0.25).all() for frame in kept)
    assert not staging.exists()


def test_shoves_are_carried_out_but_not_recorded():
    calm = demonstrate(RECIPE, 0)
    shoved = demonstrate(MetaworldRecipe(RECIPE.tasks, 0, 1.0, 64), 0)
    assert np.abs(shoved.action).max() <= 1
    env = MetaworldEnv("reach-v3", image_size=64)
    for demonstration, undisturbed in ((calm, True), (shoved, False)):
        env.start(demonstration.env_seed)
        drift = []
        for state, action in zip(demonstration.state, demonstration.action, strict=True):
            drift.append(np.abs(env.expert_state[:4] - state).max())
            env.advance(action)
        assert (max(drift) < 1e-6) == undisturbed
    env.close()


def test_an_expert_that_fails_tries_another_scene(monkeypatch):
    rehearse, tried = metaworld_demonstrations._rehearse, []

    def fails_twice(env, seed, shoves):
        tried.append(seed)
        return rehearse(env, seed, shoves) if len(tried) > 2 else None

    monkeypatch.setattr(metaworld_demonstrations, "_rehearse", fails_twice)
    demonstration = demonstrate(RECIPE, 0)
    assert demonstration.attempt == 2
    assert demonstration.env_seed == tried[2]
    assert len(set(tried)) == 3
    monkeypatch.setattr(metaworld_demonstrations, "_rehearse", lambda *_: None)
    with pytest.raises(
        MetaworldError, match=r"the expert failed 25 times in a row on reach-v3 at --noise=0\.0"
    ):
        demonstrate(RECIPE, 0)


def test_the_environments_used_longest_ago_are_closed(monkeypatch):
    closed = []
    monkeypatch.setattr(MetaworldEnv, "close", lambda env: closed.append(env.task))
    monkeypatch.setattr(metaworld_demonstrations, "_open", {})
    tasks = list(descriptions())[:6]
    for task in [*tasks[:5], tasks[0], tasks[5]]:
        metaworld_demonstrations._environment(task, 64)
    assert closed == [tasks[1]]


def test_a_demonstration_survives_its_file(tmp_path):
    kept = demonstrate(RECIPE, 1)
    kept.save(tmp_path / "episode.npz")
    read = MetaworldDemonstration.load(tmp_path / "episode.npz")
    for name in ("task", "instruction", "env_seed", "attempt"):
        assert getattr(read, name) == getattr(kept, name)
    for name in ("state", "action"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    np.testing.assert_array_equal(read.images["image"], kept.images["image"])


@pytest.mark.parametrize(
    ("env", "settings", "sentence"),
    [
        (
            RecordedLeRobotMetaworld("metaworld-push-v2"),
            {},
            "--env.task=metaworld-push-v2 is not a Meta-World task",
        ),
        (RecordedLeRobotMetaworld(task="reach-v3"), {"image_size": 63}, "--image_size=63"),
        (RecordedLeRobotMetaworld(task="reach-v3"), {"image_size": 0}, "--image_size=0"),
        (
            RecordedLeRobotMetaworld(task="reach-v3", episode_length=9),
            {},
            "--env.episode_length has no meaning",
        ),
        (RecordedMetaworld(task="reach-v3"), {"image_size": 64}, "use --env.image_size"),
        (RecordedMetaworld(task="reach-v3", episode_length=9), {}, "--env.episode_length has no meaning"),
        (RecordedMetaworld(task="reach-v3"), {"scatter": 0.5}, "--scatter has no meaning here"),
        (RecordedMetaworld(task="reach-v3"), {"noise": 2.0}, "--noise=2.0"),
    ],
)
def test_flags_that_cannot_be_used_are_named(tmp_path, env, settings, sentence):
    with pytest.raises(AegisError) as complaint:
        record(_config(tmp_path / "none", env, **settings))
    assert sentence in str(complaint.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [({"fps": 30}, r"--env\.fps=30"), ({"obs_type": "pixels"}, r"--env\.obs_type=pixels")],
)
def test_what_lerobots_metaworld_can_be_and_no_recording_is_refused(flags, sentence):
    with pytest.raises(MetaworldError, match=sentence):
        RecordedLeRobotMetaworld(task="reach-v3", **flags)


def test_without_metaworld_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld.env_dict", None)
    with pytest.raises(AegisError, match=r"uv pip install '\.\[metaworld\]'"):
        record(_config(tmp_path / "none"))
