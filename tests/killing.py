"""Commands that die at a moment of one's choice, with all that they started.

A command is a fork, as in `commands`, in a session of its own. It dies before its n-th change of the files in a folder,
which is the same moment every time, or when something is seen there.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from commands import SETTINGS
from running_processes import wait_for, writers_under

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "shutil.rmtree"}
_LOG, _CHANGED = "command.log", "changed.jsonl"


@dataclass(frozen=True)
class Ended:
    """A command that ended.

    Attributes:
        status: of its exit, negative for a signal.
        output: what it printed.
        changes: what it did to files, in order: "open answers.jsonl", "os.rename ...", their paths below the folder.
    """

    status: int
    output: str
    changes: Sequence[str]


def run(
    words: Sequence[str],
    folder: Path,
    *,
    change: int | None = None,
    seen: Callable[[], bool] | None = None,
    by: signal.Signals = signal.SIGKILL,
    patched: Mapping[str, Any] | None = None,
    timeout: float = 300,
) -> Ended:
    """Run a command until it ends or is ended, and see that nothing of it is left running.

    Args:
        words: its name and flags.
        folder: where it works. Its log lies beside this.
        change: it gets the signal before this change of files below the folder, counted from 0.
        seen: it gets the signal when this is true.
        by: the signal, to all its processes.
        patched: "module:name" -> value that this gets in the command.
        timeout: seconds.
    """
    from aegis_eval.experiments.forked_commands import start_server
    from aegis_policy.support.child_processes import without_main

    notes = folder.with_name(f"{folder.name} notes")
    notes.mkdir(exist_ok=True, parents=True)
    for name in (_LOG, _CHANGED):
        (notes / name).unlink(missing_ok=True)
    start_server(SETTINGS)
    context = multiprocessing.get_context("forkserver")
    given = (list(words), folder, notes, change, by, dict(patched or {}))
    process = context.Process(target=_run, args=given)
    with without_main():
        process.start()
    ends = time.monotonic() + timeout
    while process.is_alive():
        if seen is not None and seen():
            os.killpg(process.pid, by)
            seen = None
        if time.monotonic() > ends:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{words} did not end:\n{(notes / _LOG).read_text()[-3000:]}")
        process.join(0.01)
    wait_for(lambda: not _session(process.pid) and not writers_under(folder), 60)
    changed = (notes / _CHANGED).read_text().splitlines()
    return Ended(process.exitcode, (notes / _LOG).read_text(), [json.loads(line) for line in changed])


def _session(leader: int | None) -> list[int]:
    """Ids of the processes in the session that this one led."""
    members = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                members.append(int(folder.name))
    return members


def _run(
    words: list[str],
    folder: Path,
    notes: Path,
    change: int | None,
    by: signal.Signals,
    patched: dict[str, Any],
) -> None:
    os.setsid()
    output = os.open(notes / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.update(SETTINGS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, value in patched.items():
        module, _, attribute = name.partition(":")
        setattr(resolve_name(module), attribute, value)
    _watch(folder, notes / _CHANGED, change, by)
    sys.argv = words
    (command,) = entry_points(group="console_scripts", name=words[0])
    sys.exit(command.load()())


def _watch(folder: Path, changed: Path, change: int | None, by: signal.Signals) -> None:
    """Note changes of files below the folder from now on, and get the signal before one of them."""
    notes, count, here = os.open(changed, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 0, os.getpid()

    def see(event: str, given: tuple[Any, ...]) -> None:
        nonlocal count
        if event in _CHANGES or (event == "open" and _writes(*given[1:])):
            # A rename is one of what it makes.
            path = given[1] if event == "os.rename" else given[0] if event != "os.symlink" else given[1]
            if not isinstance(path, str | os.PathLike) or os.getpid() != here:
                return
            inside = os.path.relpath(os.path.abspath(path), folder)  # noqa: PTH100
            if inside.startswith(".."):
                return
            if count == change:
                os.killpg(0, by)
            count += 1
            os.write(notes, (json.dumps(f"{event} {inside}") + "\n").encode())

    sys.addaudithook(see)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))
