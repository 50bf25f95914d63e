"""JSON files and JSON lines, read whole and written beside their place, then renamed."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from aegis_policy.support.files import atomic_write


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return json.loads(Path(path).read_text())


def write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file; what is neither text, number, list nor mapping (a path) becomes text."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value, indent=indent, default=str) + "\n")


def read_jsonl(path: Path | str) -> list[Any]:
    """What the lines of a file hold, which end at `\\n` alone.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not JSON.
    """
    return [json.loads(line) for line in Path(path).read_text().split("\n") if line]


def write_jsonl(path: Path | str, records: Iterable[Any]) -> None:
    """Write a file of one JSON value a line."""
    with atomic_write(path) as beside, beside.open("w") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)
