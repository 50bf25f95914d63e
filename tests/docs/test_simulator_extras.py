"""The commands of the guides to simulators, in environments that hold the documented extra and nothing more."""

import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from environments import ROOT, new_environment
from random_data import write_random_dataset

_TRAIN = ["--policy.device=cpu", "--steps=2", "--save_freq=2", "--batch_size=2", "--num_workers=0"]
_TRAIN += ["--policy.expert_width=16", "--policy.expert_depth=2", "--policy.expert_heads=2"]
_EVAL = ["--policy.device=cpu", "--env.episode_length=3", "--eval.n_episodes=2", "--eval.batch_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extra", "camera", "size", "numbers"),
    [("pusht", "image", (96, 96), 2), ("aloha", "images.top", (480, 640), 14)],
)
def test_from_a_dataset_to_a_success_rate(
    extra: str,
    camera: str,
    size: tuple[int, int],
    numbers: int,
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """The data is noise with the features of the hub's, and has no task text."""
    guide = (ROOT / "docs" / "gym.md").read_text()
    (block,) = re.findall(rf"^```\n(uv pip install '\.\[{extra}\]'.*?)^```", guide, re.M | re.S)
    install, train, evaluate = [
        shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line
    ]
    assert install[:3] == ["uv", "pip", "install"]
    programs = new_environment(tmp_path / "venv", *install[3:])
    root = write_random_dataset(
        tmp_path / "data", {f"observation.{camera}": size}, state=numbers, action=numbers, tasks=[" "]
    )
    path = f"PATH={programs}{os.pathsep}{os.environ['PATH']}"
    for command, small in ((train, [f"--dataset.root={root}", *_TRAIN]), (evaluate, _EVAL)):
        done = shell("env", path, *command, *small, cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    assert len(list((tmp_path / "outputs" / "eval").rglob("eval_info.json"))) == 1
    assert len(list((tmp_path / "outputs" / "eval").rglob("*.mp4"))) >= 1
