"""Files and folders that are either whole or absent: written beside their place, then renamed.

What is being written is locked. So what a killed command left is told from what another one is writing, and is removed
when the same is written again. Where the file system knows no locks it stays.
"""

import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aegis_policy.support.disk import refusal
from aegis_policy.support.errors import AegisError

_LOCK = ".lock"


@contextmanager
def atomic_write(path: Path | str) -> Iterator[Path]:
    """Yield a path for a file of the same name; it takes the place of `path` when the block ends without an error.

    Raises:
        AegisError: the disk is full, or `path` cannot be written for another reason.
    """
    path = Path(path)
    with _beside(path) as new:
        yield new
        _give_usual_rights(new)
        new.replace(path)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a new folder of the same name, which becomes `path` when the block ends without an error.

    Raises:
        AegisError: `path` holds files, the disk is full, or it cannot be written for another reason.
    """
    path = Path(path)
    with _beside(path) as new:
        new.mkdir()
        yield new
        _give_usual_rights(new)
        new.replace(path)


@contextmanager
def alone(path: Path | str, flag: str) -> Iterator[None]:
    """Hold the place of a command's results, so that another command is refused and what cannot be written is told now.

    Args:
        path: of the file or folder.
        flag: that named it.

    Raises:
        AegisError: another command is at work there, or nothing can be written there.
    """
    path = Path(path)
    with writing(path, f"{flag}={path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f".{path.name}{_LOCK}")
        held = _hold(file, os.O_RDWR | os.O_CREAT)
    if held is None:
        raise AegisError(
            f"Another command is at work in {flag}={path}: wait until it has ended, or choose another place."
        )
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(held)


@contextmanager
def atomic_contents(folder: Path | str) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; its files take their places in `folder` when the block ends without an
    error. What else `folder` holds stays; after an error it is as it was, and gone if it held nothing.

    Raises:
        AegisError: the disk is full, or `folder` cannot be written for another reason.
    """
    folder = Path(folder)
    try:
        with _beside(folder / "files", named=folder) as new:
            new.mkdir()
            yield new
            _give_usual_rights(new)
            for path in sorted(new.rglob("*")):
                place = folder / path.relative_to(new)
                if path.is_dir():
                    place.mkdir(exist_ok=True)
                else:
                    path.replace(place)
    finally:
        with suppress(OSError):  # not empty
            folder.rmdir()


@contextmanager
def writing(path: Path, name: str | None = None) -> Iterator[None]:
    """Make a sentence of the file system's errors.

    Args:
        path: what is being written.
        name: how the user named it.

    Raises:
        AegisError: that sentence.
    """
    try:
        yield
    except AegisError:
        raise
    except Exception as error:
        if sentence := refusal(error, path, name):
            raise AegisError(sentence) from error
        raise


def require_new_directory(path: Path | str, flag: str) -> Path:
    """Return `path` if it is free (absent or empty).

    Raises:
        AegisError: something is already there.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise AegisError(f"{flag}={path} already holds files: choose another folder or remove it first.")
    return path


def require_file(path: Path | str, flag: str) -> None:
    """See that no folder is where a file is to be.

    Raises:
        AegisError: one is.
    """
    if Path(path).is_dir():
        raise AegisError(f"{flag}={path} is a folder: name a file, in it if you like.")


def exists(path: Path | str) -> bool:
    """Whether something is there; what cannot be anything's name (too long, half a character) is not."""
    return _asked(Path.exists, path)


def is_file(path: Path | str) -> bool:
    """Whether a file is there, in the same way."""
    return _asked(Path.is_file, path)


@contextmanager
def _beside(path: Path, named: Path | None = None) -> Iterator[Path]:
    """A path of the same name in a locked folder of its own beside `path`, which is gone in the end."""
    with writing(path, str(named or path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(path)
        held = None
        while held is None:
            folder = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
            held = _hold(folder / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            yield folder / path.name
        finally:
            _remove(folder)
            os.close(held)


def _remove_left(path: Path) -> None:
    """Remove what commands that were killed had written of `path`."""
    for folder in path.parent.glob(f".{glob.escape(path.name)}.????????.part"):
        if (held := _hold(folder / _LOCK, os.O_RDWR)) is not None:
            _remove(folder)
            os.close(held)
        with suppress(OSError):  # one whose lock is gone is empty
            folder.rmdir()


def _remove(folder: Path) -> None:
    """Remove a folder, its lock after everything else."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != _LOCK:
                path.unlink()
        (folder / _LOCK).unlink()
        folder.rmdir()


def _hold(file: Path, how: int) -> int | None:
    """An open descriptor that locks a file until it is closed, or the process ends; None if that is somebody else's.

    A file system without locks keeps nobody out.
    """
    with suppress(FileNotFoundError):  # its folder is gone
        while True:
            held = os.open(file, how, 0o666)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if how & os.O_CREAT and not isinstance(error, BlockingIOError):
                    return held
                os.close(held)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), file.stat()):
                    return held
            os.close(held)  # who had it removed it
    return None


def _asked(question: Callable[[Path], bool], path: Path | str) -> bool:
    try:
        return question(Path(path))
    except (OSError, ValueError):
        return False


def _give_usual_rights(written: Path) -> None:
    """Give files the rights that others here get: safetensors lets nobody else read its own."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (written, *written.rglob("*")):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)
