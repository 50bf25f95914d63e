"""The folder of an experiment: made with one set of flags, and worked in by one command at a time."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json


@contextmanager
def claimed(folder: Path, note: str, setting: Mapping[str, Any]) -> Iterator[None]:
    """Hold `folder` for an experiment of this setting, noting it there or checking that it is the one noted.

    Args:
        folder: of the experiment, made if there is none.
        note: name of the JSON file with the setting.
        setting: flags that everything in the folder has in common.

    Raises:
        AegisError: the folder holds something else or results of other flags, or another command works in it.
    """
    file = folder / note
    if file.is_file():
        _require_equal(folder, read_json(file), plain(setting))
    elif folder.exists() and any(not path.name.startswith(f".{note}.") for path in folder.iterdir()):
        raise AegisError(f"--output_dir={folder} already holds other files: choose another folder.")
    else:
        write_json(file, setting)
    with file.open("r+") as lock:  # over a network only who may write may lock
        try:
            fcntl.flock(
                lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # the system lets go of it, however this process ends
        except BlockingIOError:
            raise AegisError(
                f"Another command is at work in --output_dir={folder}: wait, or choose another."
            ) from None
        yield


def plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as they are read again from JSON: paths are text, tuples lists."""
    return json.loads(json.dumps(dict(flags), default=str))


def _require_equal(folder: Path, noted: Mapping[str, Any], setting: Mapping[str, Any]) -> None:
    differing = [key for key in setting if noted.get(key) != setting[key]]
    if differing:
        key = min(differing, key=lambda name: name not in noted)
        if key not in noted:
            raise AegisError(
                f"--output_dir={folder} holds results of a version without --{key}: choose another folder."
            )
        raise AegisError(
            f"--output_dir={folder} holds results of other flags (--{key}={noted[key]}, not {setting[key]}): "
            "give the same, or choose another folder."
        )
