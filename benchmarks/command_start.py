"""What a command of an experiment costs before it does anything: forked over started anew.

    python benchmarks/command_start.py [--rounds=5] [--json=FILE]

Both sides run `aegis-vqa --help` to its end, in turns. The first fork, which waits for the imports, is timed alone.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from _report import report

from aegis_eval.experiments.forked_commands import ForkedCommand

_COMMAND = [str(Path(sys.executable).with_name("aegis-vqa")), "--help"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    if flags.rounds < 1:
        parser.error("--rounds must be at least 1")

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"

        def forked() -> None:
            command = ForkedCommand.start(_COMMAND, log, os.environ)
            if command is None:
                sys.exit("Commands are forked on Linux without a CUDA device only.")
            if status := command.wait():
                sys.exit(f"The forked command ended with {status}: {log.read_text()}")

        def anew() -> None:
            with log.open("a") as output:
                subprocess.run(_COMMAND, stdout=output, stderr=output, check=True)

        first = _seconds(forked)
        rounds = [(_seconds(forked), _seconds(anew)) for _ in range(flags.rounds)]
        if log.read_text().count("usage: aegis-vqa") != 1 + 2 * flags.rounds:
            sys.exit(f"Not every command printed its help: {log.read_text()[:500]}")
    forked_s, anew_s = (median(side) for side in zip(*rounds, strict=True))
    report(
        {
            "command started anew, s": anew_s,
            "first fork, with the imports, s": first,
            "fork, s": forked_s,
            "fork / anew": forked_s / anew_s,
        },
        flags.json,
    )


def _seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
