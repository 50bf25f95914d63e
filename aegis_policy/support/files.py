"""Files and folders that are either whole or absent: written beside their place, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aegis_policy.support.errors import AegisError


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        beside.chmod(0o666 & ~_umask())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes the place of `path` when the block ends without an error.

    An existing folder is replaced only once the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
    try:
        yield beside
        beside.chmod(0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            path.replace(old / path.name)
            beside.replace(path)
            shutil.rmtree(old)
        else:
            beside.replace(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def atomic_contents(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; its files take their places in `folder` when the block ends without an
    error. What else `folder` holds stays; after an error it is as it was, and gone if it held nothing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=folder, prefix=".", suffix=".part"))
    try:
        yield beside
        for path in sorted(beside.rglob("*")):
            place = folder / path.relative_to(beside)
            if path.is_dir():
                place.mkdir(exist_ok=True)
            else:
                path.replace(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        with suppress(OSError):  # not empty
            folder.rmdir()


def require_new_directory(path: Path | str, flag: str) -> Path:
    """Return `path` if it is free (absent or empty).

    Raises:
        AegisError: something is already there.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AegisError(f"{flag}={path} already holds files: choose another folder or remove it first.")
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
