"""JSON files and JSON lines, read whole and written beside their place, then renamed."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from aegis_policy.support.files import atomic_write

_LONGEST_LINE = 2**24
_BLANK = b" \t\r\n\xef\xbb\xbf"
"""White space of JSON, and the mark that some editors begin files with."""


def read_json(path: Path | str) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON in UTF-8, or nested deeper or with longer numbers than Python reads.
    """
    return _value(Path(path).read_bytes())


def write_json(path: Path | str, value: Any, *, indent: int | None = 2) -> None:
    """Write a JSON file; what is neither text, number, list nor mapping (a path) becomes text."""
    with atomic_write(path) as beside:
        beside.write_text(json.dumps(value, indent=indent, default=str) + "\n")


def read_jsonl(path: Path | str) -> list[Any]:
    """What the lines of a file hold; see `iterate_jsonl`."""
    return [value for _, value in iterate_jsonl(path)]


def iterate_jsonl(path: Path | str) -> Iterator[tuple[int, Any]]:
    """The values of a file of one a line, in turn, with the numbers of their lines from 1.

    Lines end at `\\n` alone, for a question may hold any other mark that ends lines elsewhere; blank ones are left out.

    Raises:
        OSError: it cannot be read.
        ValueError: a `LineError`: a line is not JSON, as in `read_json`, or goes on after 16 MiB.
    """
    with Path(path).open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
            if not line.strip(_BLANK):
                continue
            try:
                value = _value(line)
            except ValueError as error:
                raise LineError(number, error) from error
            yield number, value


class LineError(ValueError):
    """A line that cannot be used: its number from 1, and why."""

    def __init__(self, number: int, reason: Exception) -> None:
        super().__init__(f"line {number}: {reason}")
        self.number = number
        self.reason = reason


def write_jsonl(path: Path | str, records: Iterable[Any]) -> None:
    """Write a file of one JSON value a line."""
    with atomic_write(path) as beside, beside.open("w") as lines:
        lines.writelines(json.dumps(record) + "\n" for record in records)


def _value(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"), strict=False)  # which takes tabs and the like in texts
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason} at byte {error.start})") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
