"""Commands of this environment as forks of a process that has imported what they need.

`torch`, `transformers` and `lerobot` take about nine seconds to import, and an experiment runs hundreds of commands.
This is Python's own fork server with those modules loaded beforehand; a command finds its arguments, its variables and
its log as it would in a process of its own, and ends without `atexit` handlers. Where there is a CUDA device commands
are not forked: what was imported may have touched it, and then no fork can use it.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import torch

from aegis_policy.support.child_processes import watch_parent, without_main

_IMPORTED = ("lerobot.scripts.lerobot_train", "lerobot.scripts.lerobot_eval", "aegis_policy.modeling_aegis")
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1
_STATUS = threading.Lock()
"""Starting a process looks at the exit status of all others, which each of them gives only once."""


class ForkedCommand:
    """One running command, with the part of `subprocess.Popen` that is needed of it."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process

    @classmethod
    def start(cls, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> Self | None:
        """Start a command, its output appended to `log`; None if it cannot be forked.

        That is what is no Python command of this environment, and everything where the imports fail or there is a
        CUDA device.

        Variables that are read on import (`OMP_NUM_THREADS`, `HF_HUB_OFFLINE`) hold for all commands as they were
        when the first was started; the number of threads is set again in each.
        """
        program = Path(command[0])
        entry = _commands().get(program.name)
        if sys.platform != "linux" or torch.cuda.is_available():
            return None
        if entry is None or program.parent != Path(sys.executable).parent:
            return None
        context = multiprocessing.get_context("forkserver")
        start_server(environment)
        words, variables = [str(word) for word in command], {**os.environ, **environment}
        process = context.Process(target=_run, args=(entry, words, log, variables))
        with _STATUS:
            with without_main():
                try:
                    process.start()
                except EOFError:  # the server has ended
                    return None
        return cls(process)

    def wait(self) -> int:
        """The exit status, negative for a signal, once it has ended."""
        connection.wait([self._process.sentinel])
        with _STATUS:
            self._process.join()
            assert self._process.exitcode is not None
            return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()


def start_server(environment: Mapping[str, str]) -> None:
    """Start the process that commands are forks of, unless it runs; it imports what they need meanwhile."""
    multiprocessing.set_forkserver_preload(list(_IMPORTED))
    with _STATUS, _inherited(environment):
        forkserver.ensure_running()


def end_with_parent() -> None:
    """In a new process, before its command: a parent that is killed does not leave it running."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _inherited(environment: Mapping[str, str]) -> Iterator[None]:
    """What starts meanwhile has these variables too, and Ctrl-C, which is the experiment's, does not reach it."""
    before = {name: os.environ.get(name) for name in environment}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@cache
def _commands() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group="console_scripts")}


def _run(entry: EntryPoint, command: list[str], log: Path, variables: dict[str, str]) -> None:
    end_with_parent()  # which is the server
    watch_parent()  # which is the experiment
    os.setsid()  # not in the terminal's group: what stops the experiment stops this, once
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    os.environ.update(variables)
    if "OMP_NUM_THREADS" in variables:
        torch.set_num_threads(int(variables["OMP_NUM_THREADS"].split(",")[0]))
    sys.argv = command
    sys.exit(entry.load()())
