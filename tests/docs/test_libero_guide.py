"""The commands of the LIBERO guide, on a tiny PaliGemma 2, and on small data in the formats of the real."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from official_files import write_coco, write_okvqa
from random_data import write_random_dataset

_GUIDE = (Path(__file__).parents[2] / "docs" / "libero.md").read_text()
_SMALL = ["--steps=2", "--batch_size=2", "--num_workers=0", "--policy.device=cpu", "--save_freq=2"]
_SMALL += ["--policy.expert_width=16", "--policy.expert_depth=2", "--policy.expert_heads=2"]


@pytest.mark.slow
def test_every_command_works(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in blocks.splitlines() if line]
    assert [each[0] for each in commands] == ["aegis-anchor", "lerobot-train", "lerobot-eval", "aegis-vqa"]
    shutil.copytree(tiny_vlm_dir, tmp_path / "google" / "paligemma2-3b-mix-224")
    write_random_dataset(  # the features of lerobot/libero
        tmp_path / "libero",
        {"observation.images.image": (64, 64), "observation.images.image2": (64, 64)},
        state=8,
        action=7,
        tasks=["pick up the black bowl and place it on the plate", "open the top drawer"],
        frames=60,
    )
    write_coco(tmp_path / "data" / "vqav2", split="train2014")
    write_okvqa(tmp_path / "data" / "okvqa")
    more = {"lerobot-train": [f"--dataset.root={tmp_path / 'libero'}", *_SMALL]}
    for command in commands:
        done = shell(*command, *more.get(command[0], []), cwd=tmp_path)
        if command[0] == "lerobot-eval":  # as far as it goes without LIBERO
            assert "--env.type=aegis_libero cannot run: LIBERO is not installed" in done.stderr
        else:
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    (results,) = (tmp_path / "outputs" / "vqa").glob("*/results.json")
    assert '"benchmark": "okvqa"' in results.read_text()
