"""`aegis-record`: a dataset LeRobot reads, the same for a seed, whole after an interruption."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from running_processes import descendants, packages_in, wait_for

from aegis_envs.recording.recorder import record
from aegis_envs.recording.sources import RecordConfig, RecordedTabletop
from aegis_envs.tabletop.scene import Scene
from aegis_envs.tabletop.sim import TabletopSim
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone
from aegis_policy.support.json_files import read_jsonl

HEAVY = {"torch", "lerobot", "transformers", "pyarrow"}


def _config(root, **overrides):
    settings = {"episodes": 3, "num_workers": 1, "seed": 5, **overrides}
    env = RecordedTabletop(task=settings.pop("task", "reach,pick"), split=settings.pop("split", None))
    return RecordConfig(env=env, root=root, **settings)


def _frames(root):
    dataset = LeRobotDataset("local/any", root=root)
    return [dataset[index] for index in range(len(dataset))]


def _assert_same_dataset(one, other):
    ours, theirs = _frames(one), _frames(other)
    assert len(ours) == len(theirs)
    for mine, its in zip(ours, theirs, strict=True):
        assert mine["task"] == its["task"]
        for key in ("observation.images.front", "observation.images.wrist", "observation.state", "action"):
            assert (mine[key] == its[key]).all(), key
        assert mine["episode_index"] == its["episode_index"]
    assert (one / "scenes.jsonl").read_text() == (other / "scenes.jsonl").read_text()


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Three episodes (reach, pick, reach), recorded by one worker."""
    root = tmp_path_factory.mktemp("data") / "tabletop"
    record(_config(root))
    return root


def test_an_unknown_task_ends_the_command_with_one_sentence(shell, tmp_path):
    flags = ["--env.type=aegis_tabletop", "--env.task=juggle", f"--root={tmp_path / 'data'}"]
    done = shell("aegis-record", *flags)
    assert done.returncode == 2
    assert done.stdout.startswith("error: --env.task=juggle is not a tabletop task")
    assert len(done.stdout.splitlines()) == 1


def test_the_dataset_holds_two_cameras_a_state_an_action_and_the_instruction(recording):
    dataset = LeRobotDataset("local/any", root=recording)
    assert dataset.fps == 10
    assert dataset.num_episodes == 3
    frame = dataset[0]
    assert frame["observation.images.front"].shape == (3, 96, 96)
    assert frame["observation.images.wrist"].shape == (3, 96, 96)
    assert frame["observation.state"].shape == (8,)
    assert frame["action"].shape == (4,)
    assert {dataset.meta.features[f"observation.images.{name}"]["dtype"] for name in ("front", "wrist")} == {
        "image"
    }
    described = json.loads((recording / "recording.json").read_text())
    assert frame["task"] == described["per_episode"][0]["instruction"]
    actions = np.stack([item["action"] for item in _frames(recording)])
    assert np.abs(actions).max() <= 1


def test_provenance_says_how_every_episode_came_to_be(recording):
    described = json.loads((recording / "recording.json").read_text())
    assert described["command"]
    assert (described["seed"], described["split"], described["tasks"]) == (5, "train", ["reach", "pick"])
    assert set(described["versions"]) >= {"lerobot", "mujoco", "lerobot_policy_aegis"}
    assert [item["task"] for item in described["per_episode"]] == ["reach", "pick", "reach"]
    assert sum(item["length"] for item in described["per_episode"]) == described["frames"]
    assert all(item["target"] in item["instruction"] for item in described["per_episode"])


def test_the_scene_of_a_recorded_frame_can_be_shown_again(recording):
    frames = [item for item in _frames(recording) if item["episode_index"] == 0]
    track = read_jsonl(recording / "scenes.jsonl")[0]
    assert len(track["objects"]) == len(frames)
    sim = TabletopSim()
    sim.set_scene(Scene.from_dict(track["scene"]).moved(np.array(track["objects"][0])))
    state = frames[0]["observation.state"].numpy()
    sim.set_arm(state[:3], float(state[3]))
    shown = sim.render().astype(int)
    sim.close()
    seen = (frames[0]["observation.images.front"].numpy().transpose(1, 2, 0) * 255).round().astype(int)
    assert np.abs(shown - seen).mean() < 1


def test_the_number_of_workers_changes_nothing(recording, tmp_path):
    record(_config(tmp_path / "two", num_workers=2))
    _assert_same_dataset(recording, tmp_path / "two")


def test_another_seed_records_something_else(recording, tmp_path):
    record(_config(tmp_path / "other", seed=6, episodes=1))
    scenes = [read_jsonl(root / "scenes.jsonl")[0]["scene"] for root in (tmp_path / "other", recording)]
    assert scenes[0] != scenes[1]


def test_video_is_one_flag_away(tmp_path):
    record(_config(tmp_path / "video", video=True, episodes=1))
    dataset = LeRobotDataset("local/any", root=tmp_path / "video", video_backend="pyav")
    assert dataset[3]["observation.images.front"].std() > 0.02
    videos = list((tmp_path / "video").rglob("*.mp4"))
    assert len(videos) == 2
    assert min(file.stat().st_size for file in videos) > 1000


def test_a_complete_recording_is_left_alone_and_any_other_folder_refused(recording, tmp_path, capsys):
    before = (recording / "recording.json").stat().st_mtime_ns
    record(_config(recording))
    assert "already holds this recording" in capsys.readouterr().out
    assert (recording / "recording.json").stat().st_mtime_ns == before
    left = recording.with_name(".tabletop.recording")  # killed as it was to remove its episodes
    left.mkdir()
    record(_config(recording))
    assert not left.exists()
    with pytest.raises(AegisError, match=r"--root=.* other seed, episodes: choose another folder"):
        record(_config(recording, seed=9, episodes=7))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(AegisError, match=r"--root=.*mine already holds something else"):
        record(_config(tmp_path / "mine"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_a_recording_of_the_first_version_is_recognised(tmp_path, capsys):
    """The keys that it wrote, of those that tell one recording from another."""
    root = tmp_path / "tabletop"
    root.mkdir()
    kept = {"tasks": ["reach", "pick"], "split": "train", "seed": 5, "noise": 0.5, "scatter": 0.5}
    kept |= {"image_size": 96, "episodes": 3, "video": False, "frames": 70, "per_episode": []}
    (root / "recording.json").write_text(json.dumps({"command": "aegis-record", **kept}, indent=1))
    record(_config(root))
    assert "already holds this recording" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"episodes": 0}, "--episodes=0"),
        ({"num_workers": 0}, "--num_workers=0"),
        ({"noise": -1.0}, "--noise=-1.0"),
        ({"noise": 2.0}, "--noise=2.0"),
        ({"scatter": -0.1}, "--scatter=-0.1"),
        ({"scatter": 1.5}, "--scatter=1.5"),
    ],
)
def test_flags_that_cannot_be_used_are_named(tmp_path, overrides, names):
    with pytest.raises(AegisError, match=names):
        record(_config(tmp_path / "none", **overrides))
    assert list(tmp_path.iterdir()) == []


def test_an_episode_length_is_refused_where_it_would_do_nothing(tmp_path):
    config = replace(_config(tmp_path / "none"), env=RecordedTabletop(task="reach", episode_length=9))
    with pytest.raises(AegisError, match=r"--env\.episode_length has no meaning here"):
        record(config)


def test_a_simulator_without_an_expert_is_refused_with_those_that_have_one(shell, tmp_path):
    done = shell("aegis-record", "--env.type=pusht", f"--root={tmp_path / 'none'}")
    assert done.returncode == 2
    sentence = done.stdout.splitlines()[-1]
    for part in ("--env.type", "'pusht'", "'aegis_tabletop'", "'aegis_metaworld'", "'metaworld'"):
        assert part in sentence


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A real `aegis-record` that got Ctrl-C after its first episode, and what its processes had loaded by then."""
    root = tmp_path_factory.mktemp("interrupted") / "tabletop"
    waiting = root.with_name(".tabletop.recording")
    # Far more episodes than are over before the interruption arrives.
    flags = ["--env.type=aegis_tabletop", "--env.task=reach,pick", "--episodes=400", "--num_workers=1"]
    process = subprocess.Popen(
        [Path(sys.executable).with_name("aegis-record"), *flags, "--seed=5", f"--root={root}"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: list(waiting.glob("episode_*.npz")) or process.poll() is not None)
    loaded = [packages_in(worker) for worker in descendants(process.pid)]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
    _, complaint = process.communicate(timeout=120)
    return SimpleNamespace(
        root=root, waiting=waiting, status=process.returncode, complaint=complaint, loaded=loaded
    )


def test_what_aegis_record_starts_loads_neither_torch_nor_lerobot(interrupted):
    assert any("mujoco" in packages for packages in interrupted.loaded), interrupted.complaint
    assert not any(packages & HEAVY for packages in interrupted.loaded)


def test_an_interrupted_recording_continues_where_it_stopped(interrupted, recording):
    root, waiting = interrupted.root, interrupted.waiting
    assert interrupted.status == 130, interrupted.complaint
    kept = re.search(r"(\d+) of 400 episodes kept: run the same command", interrupted.complaint)
    finished = [int(path.stem.removeprefix("episode_")) for path in sorted(waiting.glob("*.npz"))]
    assert finished == list(range(int(kept.group(1)))) != [], "a worker does not give up the episode it is in"
    assert not root.exists()
    assert [path.name for path in root.parent.iterdir()] == [".tabletop.recording"]
    stamp = (waiting / "episode_000000.npz").stat().st_mtime_ns

    with pytest.raises(AegisError, match="interrupted recording with other seed"):
        record(_config(root, seed=6))
    assert (waiting / "episode_000000.npz").stat().st_mtime_ns == stamp

    record(_config(root))
    _assert_same_dataset(recording, root)
    assert not waiting.exists()


def test_two_commands_do_not_record_the_same(tmp_path):
    with (
        alone(tmp_path / "new", "--root"),
        pytest.raises(AegisError, match="Another command is at work in --root="),
    ):
        record(_config(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_egl_gets_one_sentence_and_no_half_dataset(fork_server, monkeypatch, tmp_path):
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_DIRS", "/nowhere")
    with pytest.raises(AegisError, match=r"^off-screen rendering is not available with MUJOCO_GL=egl"):
        record(_config(tmp_path / "none"))
    assert not (tmp_path / "none").exists()
