"""The commands of the guide from demonstrations to a measured policy, as printed, with smaller numbers."""

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

_GUIDE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
_SMALLER = {
    "--episodes": "4",
    "--steps": "2",
    "--save_freq": "2",
    "--env_eval_freq": "2",
    "--batch_size": "4",
    "--eval.n_episodes": "2",
    "--eval.batch_size": "2",
    "--samples": "4",
}
_EVALUATION = ["--batch_size=4", "--samples=12", "--output_dir=vqa"]


def _small(command: Sequence[str], **others: str) -> list[str]:
    """The command with the numbers of `_SMALLER`, and with the values of `others`."""
    flags = dict(flag.split("=", 1) for flag in command[1:])
    smaller = {**_SMALLER, **{f"--{name}": value for name, value in others.items()}}
    return [command[0], *(f"{name}={smaller.get(name, value)}" for name, value in flags.items())]


def test_the_commands_work_one_after_the_other(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    blocks = "".join(re.findall(r"^```\n(.*?)^```", _GUIDE, re.M | re.S)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in blocks.splitlines() if line]
    assert [command[0] for command in commands] == [
        "aegis-record",
        "lerobot-train",
        "lerobot-eval",
        "aegis-vqa",
        "aegis-anchor",
        "lerobot-train",
        "lerobot-train",
    ]
    for command in commands:
        more = _EVALUATION if command[0] == "aegis-vqa" else []
        smaller = _small(command, steps="3") if "--resume=true" in command else _small(command)
        done = shell(*smaller, *more, cwd=tmp_path, fork=command[0] != "lerobot-eval")
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[-3000:]}"
    for made in (
        "outputs/train/checkpoints/000003/pretrained_model",
        "outputs/further/checkpoints/000002/pretrained_model",
        "vqa/results.json",
        "anchor.safetensors",
    ):
        assert (tmp_path / made).exists(), made
    assert list(tmp_path.glob("outputs/train/eval/**/*.mp4")) and list(tmp_path.glob("outputs/eval/**/*.mp4"))
