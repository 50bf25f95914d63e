"""The commands of the guide to one's own data, on a tiny dataset."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

_GUIDE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
_SMALL = ["--steps=2", "--batch_size=2", "--num_workers=0", "--policy.device=cpu", "--save_freq=2"]
_SMALL += ["--policy.chunk_size=4", "--policy.n_action_steps=2", "--policy.expert_width=16"]
_SMALL += ["--policy.expert_depth=2", "--policy.expert_heads=2"]


@pytest.mark.slow
def test_a_dataset_is_examined_and_trained_on(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_dataset: Path, tmp_path: Path
) -> None:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    examine, train = (shlex.split(line) for line in blocks.splitlines() if line)
    shutil.copytree(tiny_dataset, tmp_path / "data" / "mine")
    done = shell(*examine, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "cameras front, wrist, state 5, action 3" in done.stdout
    done = shell(*train, *_SMALL, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (inputs,) = re.findall(r"`--policy\.input_features='(.*?)'`", _GUIDE, re.S)
    wrist = (
        inputs.replace("\n", " ")
        .replace('"shape": [3, 96, 96]', '"shape": [3, 32, 32]')
        .replace("[8]", "[5]")
    )
    again = [each for each in train if not each.startswith("--output_dir")]
    done = shell(
        *again, *_SMALL, f"--policy.input_features={wrist}", f"--output_dir={tmp_path / 'one'}", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
