"""Answers kept as they come, so that a command that was interrupted goes on where it was."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write, writing
from aegis_policy.support.json_files import LineError, iterate_jsonl


class AnswerLog:
    """A folder with a file for each rank, an answer a line behind a line that says what they depend on.

    Attributes:
        answers: all ranks', by the id of their question.

    Args:
        folder: need not exist.
        about: whatever the answers depend on, JSON-able, by the name of the flag that it comes from.
        rank: whose answers will be added.

    Raises:
        AegisError: the folder holds answers that depend on something else.
    """

    def __init__(self, folder: Path, about: Mapping[str, object], rank: int = 0) -> None:
        self.answers: dict[str, str] = {}
        self._path = folder / f"rank{rank}.jsonl"
        own: dict[str, str] = {}
        for path in folder.glob("rank*.jsonl"):
            # What a killed command was writing is cut off, and so is what comes behind it.
            first, *lines = _whole(path) or [{}]
            known = first if isinstance(first, dict) else {}
            if differs := [key for key, value in about.items() if known.get(key) != value]:
                raise AegisError(
                    f"{folder} holds answers of an interrupted command with another {', '.join(differs)}: give that "
                    "command again, delete the folder, or choose another --output_dir."
                )
            answers = dict(_pairs(lines))
            self.answers |= answers
            if path == self._path:
                own = answers
        folder.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(about), *(json.dumps(pair) for pair in own.items())]
        with atomic_write(self._path) as beside:  # the other ranks are reading
            beside.write_text("\n".join(kept) + "\n")

    def add(self, answers: Iterable[tuple[str, str]]) -> None:
        """Keep answers, each with the id of its question before it."""
        new = dict(answers)
        with writing(self._path), self._path.open("a") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in new.items())
        self.answers |= new


def _whole(path: Path) -> list[Any]:
    """The lines up to one that is not JSON: it was being written when the command ended."""
    values = []
    with suppress(LineError):
        for _, value in iterate_jsonl(path):
            values.append(value)
    return values


def _pairs(lines: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Question and answer of each line that holds them."""
    for line in lines:
        if isinstance(line, list) and len(line) == 2 and all(isinstance(each, str) for each in line):
            yield line[0], line[1]
