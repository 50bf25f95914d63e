"""The commands of the guide to several processes, on two processes of a CPU."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

_GUIDE = (Path(__file__).parents[2] / "docs" / "multi_gpu.md").read_text()
_SMALL = ["--steps=2", "--batch_size=2", "--num_workers=0", "--policy.device=cpu", "--save_freq=2"]
_SMALL += ["--policy.chunk_size=4", "--policy.n_action_steps=2", "--policy.expert_width=16"]
_SMALL += ["--policy.expert_depth=2", "--policy.expert_heads=2", "--policy.anchor=gaussian"]


@pytest.mark.slow
def test_the_commands_work_with_two_processes(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_dataset: Path, tmp_path: Path
) -> None:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    train, launch, ask = (
        shlex.split(line.replace("$(which ", "@").replace(")", "")) for line in blocks.splitlines() if line
    )
    assert (
        launch[0] == "accelerate"
        and launch[launch.index("@lerobot-train") :] == train[train.index("@lerobot-train") :]
    )
    flags = {
        "@lerobot-train": [f"--dataset.root={tiny_dataset}", *_SMALL],
        "@aegis-vqa": ["--samples=40", "--device=cpu"],
    }
    for command in (train, ask):
        (program,) = (word for word in command if word.startswith("@"))
        found = [
            str(Path(sys.executable).with_name(word[1:])) if word == program else word for word in command
        ]
        done = shell(*found, *flags[program], cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
        if program == "@lerobot-train":
            assert re.search(r"Effective batch size: 2 x 2\b.* = 4", done.stdout + done.stderr)
    together = [
        json.loads(line) for line in (tmp_path / "outputs/vqa/two/samples.jsonl").read_text().splitlines()
    ]
    path = tmp_path / "outputs/two/checkpoints/last/pretrained_model"
    done = shell(
        "aegis-vqa",
        f"--policy.path={path}",
        *flags["@aegis-vqa"],
        f"--output_dir={tmp_path / 'one'}",
        cwd=tmp_path,
    )
    alone = [json.loads(line) for line in (tmp_path / "one" / "samples.jsonl").read_text().splitlines()]
    assert together == alone and len(alone) == 40
