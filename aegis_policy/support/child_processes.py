"""Processes of `multiprocessing` that end with the one that made them, and import what they need only."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from types import ModuleType


def watch_parent() -> None:
    """End this process as soon as its parent is gone, even if that was killed; the `initializer` of a pool.

    A fork server would keep it going: it lives as long as any of the processes it made.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a process of multiprocessing"
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


@contextmanager
def without_main() -> Iterator[None]:
    """Keep the main module from processes that start meanwhile.

    A new process imports the script that its parent was started from, and with that of a command all of torch and
    LeRobot. What it is given to do must not lie in that script.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
