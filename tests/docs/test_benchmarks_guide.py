"""The commands of the guide to benchmarks, on small files in the official formats."""

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from official_files import write_coco, write_okvqa
from PIL import Image

_GUIDE = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()


@pytest.mark.slow
def test_every_command_works(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    blocks = re.findall(r"^```\n(aegis-.*?)^```", _GUIDE, re.M | re.S)
    commands = [shlex.split(block.replace("\\\n", " ")) for block in blocks]
    assert [command[0] for command in commands] == [*["aegis-vqa"] * 4, "aegis-anchor"]
    checkpoint = tmp_path / "outputs" / "run" / "checkpoints" / "last" / "pretrained_model"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.symlink_to(tiny_checkpoint)
    write_okvqa(tmp_path / "data" / "okvqa")
    write_coco(tmp_path / "data" / "vqav2", split="train2014")
    pictures = [Image.fromarray(np.full((30, 40, 3), 80 * number, np.uint8)) for number in range(3)]
    own = {"image": pictures, "question": ["how bright?"] * 3, "answers": [["dark"], ["grey"], ["light"]]}
    datasets.Dataset.from_dict(own).to_parquet(
        tmp_path / "data" / "questions" / "test-00000-of-00001.parquet"
    )
    (tmp_path / "general_questions.jsonl").write_text('{"question": "what is it?", "answers": ["a cube"]}')
    (tmp_path / "prose.txt").write_text("the red cube is on the table\n\nand the green one is not")
    for command in commands:
        done = shell(*command, cwd=tmp_path)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "vqa").glob("*/results.json")]
    assert sorted(each["benchmark"] for each in results) == [
        "custom",
        "okvqa",
        "text:general_questions.jsonl",
        "text:prose.txt",
    ]
    assert (tmp_path / "anchor.safetensors").is_file()
