"""Which files a checkpoint was saved with: a list beside them, in JSON.

LeRobot uploads `*.safetensors`, `*.json`, `*.yaml` and `*.md` of a policy and leaves the rest behind, a chat template
or a vocabulary among it. So the list holds the contents of what bears another name.
"""

import base64
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json, write_json

LIST_FILE = "saved_files.json"
UPLOADED = ("*.safetensors", "*.json", "*.yaml", "*.md")
"""`allow_patterns` of LeRobot's uploads of a policy (0.6.1: `policies/pretrained.py`); a folder may stand in front."""
_FILES, _CONTENTS = "files", "contents"


def write_list(folder: Path) -> None:
    """List the files of a folder that will be a checkpoint, with the contents of those that are not uploaded."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    contents = {
        name: base64.b64encode(path.read_bytes()).decode()
        for name, path in sorted(paths.items())
        if not any(fnmatch(name, pattern) for pattern in UPLOADED)
    }
    write_json(folder / LIST_FILE, {_FILES: sorted(paths), _CONTENTS: contents})


def missing_files(checkpoint: Path) -> list[str]:
    """What a checkpoint was saved with and has lost; nothing is known of one without a list.

    Raises:
        AegisError: the list is none.
    """
    names, contents = _read(checkpoint)
    return [name for name in names if name not in contents and not (checkpoint / name).is_file()]


def listed_contents(checkpoint: Path) -> set[str]:
    """The files whose contents the list holds.

    Raises:
        AegisError: the list is none.
    """
    return set(_read(checkpoint)[1])


@contextmanager
def whole(checkpoint: Path, folder: str) -> Iterator[Path]:
    """A folder of a checkpoint with all that was saved in it, what was not uploaded too.

    It is the folder itself, or else a copy that goes when the block ends.

    Raises:
        AegisError: the list of files is none.
    """
    _, contents = _read(checkpoint)
    absent = {
        name: content
        for name, content in contents.items()
        if PurePosixPath(name).parts[0] == folder and not (checkpoint / name).is_file()
    }
    if not absent:
        yield checkpoint / folder
        return
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(checkpoint / folder, Path(copy) / folder)
        for name, content in absent.items():
            path = Path(copy) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(copy) / folder


def _read(checkpoint: Path) -> tuple[list[str], dict[str, bytes]]:
    """Names, and contents by name; none of a checkpoint that was saved before there was a list."""
    path = checkpoint / LIST_FILE
    if not path.is_file():
        return [], {}
    try:
        listed = read_json(path)
        names = [_inside(name) for name in listed[_FILES]]
        contents = {
            _inside(name): base64.b64decode(text, validate=True) for name, text in listed[_CONTENTS].items()
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AegisError(
            f"{path} is no list of a checkpoint's files ({type(error).__name__}: {one_line(error, 200)}): restore it "
            "from where the checkpoint was saved."
        ) from error
    return names, contents


def _inside(name: Any) -> str:
    """A name that leads nowhere else, and that a file can bear.

    Raises:
        ValueError: it is none.
    """
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or {"..", "\0"} & {*path.parts, *name}
        or len(os.fsencode(name)) > 250
    ):
        raise ValueError(f"a file named {name[:50]!r}")
    return path.as_posix()
