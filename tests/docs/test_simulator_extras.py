"""The commands of the guides to simulators, in environments that hold the documented extra and nothing more."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_dataset import write_random_dataset

_ROOT = Path(__file__).parents[2]
_TRAIN = ["--policy.device=cpu", "--steps=2", "--save_freq=2", "--batch_size=2", "--num_workers=0"]
_TRAIN += ["--policy.expert_width=16", "--policy.expert_depth=2", "--policy.expert_heads=2"]
_EVAL = ["--policy.device=cpu", "--env.episode_length=3", "--eval.n_episodes=2", "--eval.batch_size=2"]


def _uv() -> str:
    own = _ROOT / ".uv" / "bin" / "uv"
    found = str(own) if own.is_file() else shutil.which("uv")
    if found is None:
        pytest.skip("no uv here, which makes the environment: run `make test` once")
    return found


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The data is noise with the features of the hub's, and has no task text."""
    guide = (_ROOT / "docs" / "gym.md").read_text()
    (block,) = re.findall(rf"^```\n(uv pip install '\.\[{extra}\]'.*?)^```", guide, re.M | re.S)
    install, train, evaluate = [
        shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line
    ]
    environment = tmp_path / "venv"
    subprocess.run([_uv(), "venv", "--quiet", "--python", sys.executable, environment], check=True)
    monkeypatch.setenv("VIRTUAL_ENV", str(environment))
    subprocess.run([_uv(), *install[1:], "--quiet"], cwd=_ROOT, check=True)
    root = write_random_dataset(
        tmp_path / "data", {f"observation.{camera}": size}, state=numbers, action=numbers, tasks=[" "]
    )
    path = f"PATH={environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for command, small in ((train, [f"--dataset.root={root}", *_TRAIN]), (evaluate, _EVAL)):
        done = shell("env", path, *command, *small, cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    assert len(list((tmp_path / "outputs" / "eval").rglob("eval_info.json"))) == 1
    assert len(list((tmp_path / "outputs" / "eval").rglob("*.mp4"))) >= 1
