"""Disks that are full, and folders that cannot be written."""

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import commands
import pytest


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond this many bytes, which fails as it does where there is no space left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


Shell = Callable[..., subprocess.CompletedProcess[str]]


@contextmanager
def full_disk(folder: Path, size: int, free: int) -> Iterator[Shell]:
    """A disk at `folder` with so many bytes in all and left; what runs commands while it is that full.

    Where nobody may make one, no file of those commands may grow beyond `free`.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield partial(
            _run_limited, max(1000, free)
        )  # with nothing at all Python finds no place for temporary files
        return
    try:
        _fill(folder / "earlier", free)
        yield commands.run
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _fill(file: Path, free: int) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as opened:
        while True:
            opened.write(bytes(4096))
    with file.open("r+b") as opened:
        opened.truncate(max(0, file.stat().st_size - free))


def _run_limited(size: int, *words: str) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    environment = {**os.environ, **commands.SETTINGS}
    return subprocess.run(
        words,
        env=environment,
        preexec_fn=limit,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written in `folder`, which root could in spite of its rights."""
    folder.chmod(0o555)
    mounted = os.geteuid() == 0
    if (
        mounted
        and subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode
    ):
        pytest.skip("root writes everywhere, and may not mount here")
    try:
        if mounted:
            subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)
        folder.chmod(0o755)
