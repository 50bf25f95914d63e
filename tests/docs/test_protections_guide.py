"""The commands of the guide to protections, with fewer steps, on a tiny VLM and small random data."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from random_data import write_random_questions

_GUIDE = (Path(__file__).parents[2] / "docs" / "protections.md").read_text()
_SMALL = {
    "aegis-anchor": ["--samples=4", "--batch_size=2"],
    "lerobot-train": [
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        "--policy.device=cpu",
        "--policy.expert_width=16",
        "--policy.expert_depth=2",
        "--policy.expert_heads=2",
    ],
}


@pytest.mark.slow
def test_every_command_works(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tiny_vlm_dir: Path,
    tiny_dataset: Path,
    tmp_path: Path,
) -> None:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in blocks.splitlines() if line]
    assert [each[0] for each in commands].count("lerobot-train") == 4
    shutil.copytree(tiny_vlm_dir, tmp_path / "models" / "my-vlm")
    shutil.copytree(tiny_dataset, tmp_path / "data" / "tabletop")
    write_random_questions(tmp_path / "my_vqa", answer="a cube")
    for command in commands:
        done = shell(*command, *_SMALL.get(command[0], []), cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    cards = {
        path.parts[-5]: path.read_text() for path in tmp_path.glob("outputs/*/checkpoints/000002/*/README.md")
    }
    assert (tmp_path / "outputs" / "ewc-0.8" / "model.safetensors").is_file()
    for name in ("aegis", "ewc", "replay", "lora"):
        assert f"| protection | {name}" in cards[name]
