"""Answers kept as they come, so that a command that was interrupted goes on where it was."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write, writing


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
            first, *lines = path.read_text().splitlines() or ["{}"]
            if differs := [key for key, value in about.items() if json.loads(first).get(key) != value]:
                raise AegisError(
                    f"{folder} holds answers of an interrupted command with another {', '.join(differs)}: give that "
                    "command again, delete the folder, or choose another --output_dir."
                )
            answers = dict(_whole(lines))
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


def _whole(lines: Iterable[str]) -> Iterable[tuple[str, str]]:
    """The lines up to one that was being written when the command ended."""
    for line in lines:
        try:
            identity, answer = json.loads(line)
        except ValueError:
            return
        yield identity, answer
