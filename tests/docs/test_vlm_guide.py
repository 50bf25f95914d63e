"""The commands of the guide to other VLMs, on a tiny SmolVLM2."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from random_data import write_random_questions
from tiny_vlms import save_tiny_vlm
from transformers import AutoModelForImageTextToText

_GUIDE = (Path(__file__).parents[2] / "docs" / "vlms.md").read_text()
_SMALL = ["--steps=2", "--batch_size=2", "--num_workers=0", "--policy.device=cpu", "--policy.expert_width=16"]
_SMALL += [
    "--policy.expert_depth=2",
    "--policy.expert_heads=2",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=2",
]


@pytest.mark.slow
def test_from_a_directory_to_an_exported_model(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_dataset: Path, tmp_path: Path
) -> None:
    (block,) = re.findall(r"^```\n(aegis-anchor.*?)^```", _GUIDE, re.M | re.S)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [command[0] for command in commands] == ["aegis-anchor", "lerobot-train", "aegis-export"]
    save_tiny_vlm("smolvlm", tmp_path / "models" / "SmolVLM2-500M-Video-Instruct")
    write_random_questions(tmp_path / "vqa")
    more = {
        "aegis-anchor": ["--samples=4"],
        "lerobot-train": [f"--dataset.root={tiny_dataset}", *_SMALL],
        "aegis-export": [],
    }
    for command in commands:
        done = shell(*command, *more[command[0]], cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "outputs" / "exported")
    assert model.config.model_type == "smolvlm"
