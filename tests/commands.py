"""Commands as a user types them: forks of a process that has imported what they need, or processes of their own."""

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import chdir
from pathlib import Path

_PROGRAMS = Path(sys.executable).parent
SETTINGS = {
    "PATH": f"{_PROGRAMS}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Variables of every command: one thread, no network."""


def run(
    *arguments: str, cwd: Path | None = None, timeout: float = 500, fork: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Args:
        arguments: its name, as a user types it, and what follows.
        cwd: the folder it is started in.
        timeout: seconds after which it is ended.
        fork: whether it may be a fork, whose `stdout` and `stderr` are one text. For each command one test says no,
            so that it is seen to start as users start it.
    """
    if fork and (done := _run_forked(arguments, cwd or Path.cwd(), timeout)) is not None:
        return done
    return subprocess.run(
        arguments,
        cwd=cwd,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def _run_forked(
    arguments: tuple[str, ...], cwd: Path, timeout: float
) -> subprocess.CompletedProcess[str] | None:
    """None for what cannot be forked."""
    from aegis_eval.experiments.forked_commands import ForkedCommand

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with chdir(cwd):
            command = ForkedCommand.start([_PROGRAMS / arguments[0], *arguments[1:]], log, SETTINGS)
        if command is None:
            return None
        limit = threading.Timer(timeout, command.terminate)
        limit.start()
        try:
            status = command.wait()
        finally:
            limit.cancel()
        output = log.read_text()
    return subprocess.CompletedProcess(arguments, status, output, output)
