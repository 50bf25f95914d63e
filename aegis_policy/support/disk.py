"""What the file system said when a file could not be used, as a sentence: what, where, why, and what to do."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

_ELSEWHERE = "or name another place"
_MENDS = {
    errno.ENOSPC: f"free some space there, {_ELSEWHERE}",
    errno.EDQUOT: f"remove some of your files there, {_ELSEWHERE}",
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f), {_ELSEWHERE}",
    errno.EROFS: "name another place",
    errno.EACCES: f"ask for the right to use it, {_ELSEWHERE}",
    errno.EPERM: f"ask for the right to use it, {_ELSEWHERE}",
    errno.ENOTDIR: "a file is where a folder is to be, so name another place",
    errno.EEXIST: "a file is where a folder is to be, so name another place",
    errno.ENOTEMPTY: f"move the files that were put there meanwhile, {_ELSEWHERE}",
    errno.EISDIR: "a folder is where a file is to be, so name another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EIO: f"see to that disk, {_ELSEWHERE}",
}
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_IN_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) tell the number inside an error of their own kind."""


def refusal(error: BaseException, path: Path | None = None, name: str | None = None) -> str | None:
    """A sentence about an error of the file system, or one that it caused; None if it is another kind of error.

    Args:
        error: any.
        path: what was being written, named unless the error is about a file elsewhere.
        name: how the user named it.
    """
    for cause in _causes(error):
        number = _number(cause)
        if number in _MENDS:
            place = _place(cause, path, name)
            can = "written" if number in _OF_WRITING else "used"
            return f"{place} cannot be {can} ({os.strerror(number)}): {_MENDS[number]}."
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    told = _IN_RUST.search(str(error))
    return int(told[1]) if told else None


def _place(error: BaseException, path: Path | None, name: str | None) -> str:
    told = getattr(error, "filename", None)
    if path is None:
        return str(told) if told is not None else "A file"
    if (
        isinstance(told, str | os.PathLike)
        and not path.is_relative_to(told)
        and (not Path(told).is_relative_to(path.parent))
    ):
        return str(told)
    return name or str(path)
