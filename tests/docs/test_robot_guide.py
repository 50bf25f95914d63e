"""The commands of the guide to a robot, as printed, on a pretended arm: its type, numbers and pictures are smaller."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import draccus
import lerobot
import pytest

_TESTS = Path(__file__).parents[1]
_GUIDE = (_TESTS.parent / "docs" / "robot.md").read_text()
_PRETENDED = {
    "so101_follower": "pretended_follower",
    "so101_leader": "pretended_leader",
    "width: 640, height: 480": "width: 64, height: 48",
}
_SMALLER = {
    "--dataset.num_episodes": "2",
    "--dataset.episode_time_s": "1",
    "--dataset.reset_time_s": "0.1",
    "--duration": "5",
    "--operation.chunk_size": "25",
    "--policy.chunk_size": "25",
    "--steps": "2",
    "--save_freq": "2",
    "--batch_size": "2",
}
_ON_A_CPU = ["--policy.device=cpu", "--num_workers=0"]
_ON_A_CPU += ["--policy.expert_width=16", "--policy.expert_depth=2", "--policy.expert_heads=2"]


def _commands() -> list[list[str]]:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines() if line]


def _small(command: list[str]) -> list[str]:
    text = [command[0]]
    for flag in command[1:]:
        for real, pretended in _PRETENDED.items():
            flag = flag.replace(real, pretended)
        name, _, value = flag.partition("=")
        text.append(f"{name}={_SMALLER.get(name, value)}")
    return text


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on Python's path in which the pretended arm lies as an installed package would."""
    name, folder = "lerobot_robot_pretended", tmp_path / "site"
    described = folder / f"{name}-1.0.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    shutil.copy(_TESTS / "pretended_robot.py", folder / f"{name}.py")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield folder


def test_what_it_says_of_the_policy_server_is_so() -> None:
    constants = (
        Path(lerobot.__file__).parent / "async_inference" / "constants.py"
    )  # which to import needs gRPC
    (served,) = re.findall(r"^SUPPORTED_POLICIES = (\[.*\])$", constants.read_text(), re.M)
    assert "smolvla" in ast.literal_eval(served) and "aegis" not in ast.literal_eval(served)
    assert "knows a fixed list of policies" in _GUIDE


def test_lerobot_has_every_flag_of_the_guide(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> None:
    from lerobot.rollout import RolloutConfig
    from lerobot.scripts.lerobot_record import RecordConfig
    from lerobot.scripts.lerobot_replay import ReplayConfig

    configs = {
        "lerobot-record": RecordConfig,
        "lerobot-replay": ReplayConfig,
        "lerobot-rollout": RolloutConfig,
    }
    checked = []
    for command in _commands():
        if command[0] in configs:
            flags = [
                f"--policy.path={tiny_checkpoint}" if flag.startswith("--policy.path=") else flag
                for flag in command[1:]
            ]
            monkeypatch.setattr(sys, "argv", [command[0], *flags])  # where LeRobot looks for --policy.path
            given = [flag for flag in flags if not flag.startswith("--policy.path=")]
            draccus.parse(config_class=configs[command[0]], args=given)
            checked.append(command[0])
    assert checked == ["lerobot-record"] * 2 + ["lerobot-replay"] + ["lerobot-rollout"] * 3


@pytest.mark.slow
def test_from_a_leaders_demonstrations_to_a_policy_that_moves_the_arm(
    shell: Callable[..., subprocess.CompletedProcess[str]], plugin: Path, tmp_path: Path
) -> None:
    sent = tmp_path / "sent_actions.txt"
    for command in _commands():
        small = _small(command)
        if command[0] == "lerobot-train":
            small += _ON_A_CPU
        sent.unlink(missing_ok=True)
        done = shell(*small, cwd=tmp_path, fork=not command[0].startswith(("lerobot-re", "lerobot-ro")))
        assert done.returncode == 0, f"{shlex.join(small)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
        if command[0] == "aegis-doctor":
            assert "4 episodes" in done.stdout and "cameras front, wrist, state 6, action 6" in done.stdout
        elif command[0] not in ("lerobot-train", "lerobot-edit-dataset"):
            assert len(sent.read_text().splitlines()) >= 10, shlex.join(small)
    tasks = (tmp_path / "data" / "rollout_blocks" / "meta" / "info.json").read_text()
    assert '"total_episodes": 2' in tasks

    base = next(_small(each) for each in _commands() if each[0] == "lerobot-rollout")
    for flags in (
        ["--inference.type=rtc", "--inference.queue_threshold=30"],
        ["--use_torch_compile=true"],
        ["--interpolation_multiplier=2"],
    ):
        assert all(flag.partition("=")[0] in _GUIDE for flag in flags)
        sent.unlink()
        done = shell(*base, *flags, cwd=tmp_path, fork=False)
        assert done.returncode == 0, f"{flags}\n{done.stderr[-3000:]}"
        assert len(sent.read_text().splitlines()) >= 10, flags

    untold = [flag for flag in base if not flag.startswith("--task")]
    done = shell(*untold, cwd=tmp_path, fork=False)
    assert done.returncode != 0 and "The data has no instruction" in done.stderr, done.stderr[-2000:]
