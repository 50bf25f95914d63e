"""What a command costs before it does anything: to its `--help`, and to the first line of its work.

    python benchmarks/command_start.py [--rounds=3] [--only=aegis-vqa,aegis-demo] [--json=FILE]

The first line of the work is that it refuses a number or a place, which takes all imports but those of what it comes to
later: a policy brings LeRobot's with it, a VLM those of transformers, a page matplotlib. Every round runs everything
once. CPU seconds (`cpu`) are those of an idle machine even on a busy one; beside them, for scale, what bare imports
take, and a command of an experiment, which is a fork (`aegis_eval.experiments.forked_commands`); the first fork, which
waits for the imports, is timed alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from statistics import median

from _report import report

from aegis_eval.experiments.forked_commands import ForkedCommand

_REFUSED = {
    "aegis-record": "--episodes=0",
    "aegis-pretrain": "--steps=0",
    "aegis-anchor": "--samples=0",
    "aegis-vqa": "--samples=0",
    "aegis-ablate": "--seeds=0",
    "aegis-action-error": "--frames=0",
    "aegis-baseline": "--episodes=0",
    "aegis-act": "--scenes=0",
    "aegis-swap": "--pairs=0",
    "aegis-drift": "--samples=0",
    "aegis-merge": "--alpha=2",
    "aegis-compare": "--seeds=0",
    "aegis-export": "--policy.path=nowhere",
    "aegis-report": "--runs=nowhere",
    "aegis-demo": "--task=nothing",
}
"""Command -> a flag that its work refuses; `aegis-doctor` refuses nothing."""
_SCALE = ("torch", "lerobot.scripts.lerobot_train", "aegis_policy.modeling_aegis")
_FORKED = "aegis-vqa"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="commands, with commas", default=",".join([*_REFUSED, "aegis-doctor"]))
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if flags.rounds < 1:
        parser.error("--rounds must be at least 1")
    names = flags.only.split(",")
    # Where what is refused would have been written.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        first_s = _forked_s(Path(folder) / "log")
        found = [_round(_commands(names), Path(folder) / "log") for _ in range(flags.rounds)]
    figures = {what: median(each[what] for each in found) for what in found[0]}
    report({**figures, "first fork, with the imports, s": first_s}, flags.json)


def _commands(names: Sequence[str]) -> Mapping[str, list[str]]:
    """What is timed, by what it is called; interleaved as it runs."""
    program = Path(sys.executable).with_name
    helps = {f"{name} --help": [str(program(name)), "--help"] for name in names}
    works = {f"{name}: work": [str(program(name)), _REFUSED[name]] for name in names if name in _REFUSED}
    training = [str(program("lerobot-train")), "--policy.type=aegis", "--help"]
    scale = {f"import {module}": [sys.executable, "-c", f"import {module}"] for module in _SCALE}
    return {**scale, "lerobot-train --help": training, **helps, **works}


def _round(commands: Mapping[str, list[str]], log: Path) -> dict[str, float]:
    figures = {}
    for what, command in commands.items():
        wall_s, cpu_s = _seconds(command, log, refused=what.endswith(": work"))
        figures |= {f"{what}, s": wall_s, f"{what}, cpu": cpu_s}
    return {**figures, f"{_FORKED}: work as a fork, s": _forked_s(log)}


def _seconds(command: Sequence[str], log: Path, refused: bool) -> tuple[float, float]:
    """By the clock and of the CPU, to the command's end."""
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != (2 if refused else 0):
        sys.exit(f"{command} ended with {process.returncode}: {log.read_text()[-500:]}")
    return wall_s, used.ru_utime + used.ru_stime


def _forked_s(log: Path) -> float:
    start = time.perf_counter()
    command = [Path(sys.executable).with_name(_FORKED), _REFUSED[_FORKED]]
    forked = ForkedCommand.start(command, log, os.environ)
    if forked is None:
        sys.exit("Commands are forked on Linux without a CUDA device only.")
    if (status := forked.wait()) != 2:
        sys.exit(f"The forked command ended with {status}: {log.read_text()[-500:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
