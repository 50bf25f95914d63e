"""Answers kept as they come, so that a command that was interrupted goes on where it was."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path


class AnswerLog:
    """A file with an answer a line; what another model said, or to other questions, is not taken over.

    Attributes:
        answers: by the id of their question.

    Args:
        path: of the file, which need not exist.
        about: whatever the answers depend on.
    """

    def __init__(self, path: Path, about: Mapping[str, object]) -> None:
        self.answers: dict[str, str] = {}
        self._path = path
        self._about = json.dumps(about, sort_keys=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        if lines and lines[0] == self._about:
            self._take_over(lines[1:])
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._about + "\n")

    def add(self, answers: Iterable[tuple[str, str]]) -> None:
        """Keep answers, each with the id of its question before it."""
        new = dict(answers)
        with self._path.open("a") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in new.items())
        self.answers |= new

    def _take_over(self, lines: Iterable[str]) -> None:
        """All whole lines; one that was being written goes, so that the next does not continue it."""
        for line in lines:
            try:
                identity, answer = json.loads(line)
            except ValueError:
                break
            self.answers[identity] = answer
        kept = [self._about, *(json.dumps(pair) for pair in self.answers.items())]
        self._path.write_text("\n".join(kept) + "\n")
