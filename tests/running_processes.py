"""What processes do, as Linux tells it: who writes to a log, whose libraries one has loaded, whom it has started."""

import re
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


def descendants(pid: int) -> list[int]:
    """Ids of the processes that this one has started, and that those have."""
    children = [
        int(child)
        for listed in Path(f"/proc/{pid}/task").glob("*/children")
        for child in listed.read_text().split()
    ]
    return [*children, *(each for child in children for each in descendants(child))]


def packages_in(pid: int) -> set[str]:
    """Packages of whose compiled modules and libraries this process has loaded any."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"/site-packages/(\w+)/", mapped))


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.1)
