"""Processes of `multiprocessing` that end with the one that made them."""

import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess


def watch_parent() -> None:
    """End this process as soon as its parent is gone, even if that was killed; the `initializer` of a pool.

    A fork server would keep it going: it lives as long as any of the processes it made.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "not a process of multiprocessing"
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: BaseProcess) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
