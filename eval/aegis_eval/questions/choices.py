"""Multiple-choice benchmarks from the files that the hub hands out: which letter does the model say?

Options stand in the prompt and answers are read as in lmms-eval 0.7.3, so that figures can be compared.
"""

import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aegis_eval.questions.from_records import ReadBenchmark
from aegis_eval.questions.official_letters import first_option_letter, option_letter
from aegis_eval.questions.official_scores import matches
from aegis_eval.questions.records import Json, Metric, Record, field, shown
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.families import WholePrompt
from aegis_policy.vqa.sources import expanded

_LETTERS = ("A", "B", "C", "D")
"""Of MMStar and RealWorldQA, whatever options a question has."""
_DIRECTLY = "Answer with the option's letter from the given choices directly"
_WHOLE_FILE = "train"
"""What `datasets` calls the split of a file whose name says none."""
_OPTION = re.compile(r"^\s*[A-Z]\. ", re.MULTILINE)


@dataclass(frozen=True)
class ChoiceBenchmark(ReadBenchmark):
    """A `Benchmark` of multiple-choice questions.

    Attributes:
        data_set: the id under which lmms-eval reads it.
        finish: makes the question of a record and its row, with options in the prompt.
        metric: from an answer and the right letter to 1 or 0.
        reported: the split with answers, the only one that is read.
        called: what else that split may be called in a folder.
    """

    name: str
    lmms_eval_task: str
    data_set: str
    finish: Callable[[Record, Json], Record]
    metric: Metric
    reported: str = "test"
    called: tuple[str, ...] = (_WHOLE_FILE,)

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions of the hub's files in a folder, or of the hub."""
        if split != self.reported:
            raise AegisError(
                f"{self.name} has answers for its split {self.reported} alone, none for {split}."
            )
        from aegis_eval.questions.data_sets import read_data_set

        splits = [split, *self.called]
        return read_data_set(expanded(place or self.data_set), splits, finish=self.finish), self.metric


def _mmstar(record: Record, row: Json) -> Record:
    """Options stand in the question already."""
    return replace(
        record,
        id=_index(record, row),
        question=WholePrompt(f"{record.question.strip()}\n{_DIRECTLY}"),
        answers=(_letter(record, _LETTERS),),
        chance=1 / len(_LETTERS),
    )


def _realworldqa(record: Record, row: Json) -> Record:
    """Questions say themselves how they are answered; half of them with a letter, the others with a word or number."""
    asked = replace(record, question=WholePrompt(record.question.strip()))
    if record.answers[0].strip().upper() not in _LETTERS:
        return replace(asked, type="word", metric=_says_word)
    options = len(_OPTION.findall(record.question)) or len(_LETTERS)
    return replace(asked, type="letter", answers=(_letter(record, _LETTERS),), chance=1 / options)


def _ai2d(record: Record, row: Json) -> Record:
    """The answer is the place of an option among them, from 0."""
    options = _texts(field(row, "options"))
    number = record.answers[0].strip()
    if not number.isdecimal() or int(number) >= len(options):
        raise ValueError(
            f"its answer is {shown(number)}, and its options are numbered 0 to {len(options) - 1}"
        )
    return replace(
        record,
        question=WholePrompt(f"{record.question}\n{_listed(options)}\n{_DIRECTLY}."),
        answers=(string.ascii_uppercase[int(number)],),
        chance=1 / len(options),
    )


def _index(record: Record, row: Json) -> str:
    return str(row.get("index", record.id))


def _letter(record: Record, letters: Sequence[str]) -> str:
    """The right letter.

    Raises:
        ValueError: it is none of these.
    """
    letter = record.answers[0].strip().upper()
    if letter not in letters:
        raise ValueError(f"its answer is {shown(record.answers[0])}, none of {', '.join(letters)}")
    return letter


def _texts(value: Any) -> list[str]:
    """The options of a question, at least two."""
    options = [] if isinstance(value, str) or not isinstance(value, Sequence) else [*value]
    if len(options) < 2 or not all(isinstance(each, str) for each in options):
        raise ValueError(f"its options are {shown(value)}, not two texts or more")
    return options


def _listed(options: Sequence[str]) -> str:
    """Each behind its letter, on lines of their own."""
    return "\n".join(
        f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)
    )


def _says_letter(given: str, answers: Sequence[str]) -> float:
    return float(option_letter(given, _LETTERS) == answers[0])


def _says_word(given: str, answers: Sequence[str]) -> float:
    return float(given.lower().strip().rstrip(".") == answers[0].strip().lower())


def _begins_with_letter(given: str, answers: Sequence[str]) -> float:
    return float(matches(first_option_letter(given), answers[0]))


CHOICES: dict[str, ChoiceBenchmark] = {
    each.name: each
    for each in (
        ChoiceBenchmark(
            "mmstar",
            lmms_eval_task="mmstar",
            data_set="Lin-Chen/MMStar",
            finish=_mmstar,
            metric=_says_letter,
            reported="val",
        ),
        ChoiceBenchmark(
            "realworldqa",
            lmms_eval_task="realworldqa",
            data_set="lmms-lab-encoder/RealWorldQA",
            finish=_realworldqa,
            metric=_says_letter,
        ),
        ChoiceBenchmark(
            "ai2d",
            lmms_eval_task="ai2d",
            data_set="lmms-lab-encoder/ai2d",
            finish=_ai2d,
            metric=_begins_with_letter,
        ),
    )
}
