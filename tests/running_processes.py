"""Who still writes to a log: commands, and the workers that inherited their output."""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def writers_under(place: Path) -> list[str]:
    """Ids of the processes whose output goes to this file, or to files in this folder."""
    writers = []
    for output in Path("/proc").glob("[0-9]*/fd/1"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if output.readlink().is_relative_to(place):
                writers.append(output.parts[2])
    return writers


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.1)
