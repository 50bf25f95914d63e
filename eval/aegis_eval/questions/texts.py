"""Questions without a picture, from a file of one's own: what a language model knew before it saw any.

A line is `{"question": text, "answers": [text, ...]}`, or `"answer"` with one; models answer in whole sentences, so an
answer is right if one of these occurs in it.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from aegis_eval.questions.from_records import ReadBenchmark
from aegis_eval.questions.own import read_lines
from aegis_eval.questions.records import WHOLE, Json, Metric, Record, Reread, record_of, shown
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import VQAExample, normalise_answer
from aegis_policy.vqa.texts import QUESTIONS, SOURCE, text_file

_MEND = 'it must be {"question": text, "answers": [text, ...]}.'


@dataclass(frozen=True)
class TextQuestions(ReadBenchmark):
    """A `Benchmark` of questions in a file, which is read whole whatever split is asked for."""

    name: str
    file: Path
    reported: str = WHOLE
    takes_place: bool = False
    lmms_eval_task: None = None

    @classmethod
    def of(cls, file: Path) -> Self:
        """The questions of a file, called `text:` and its name without the folder."""
        return cls(f"{SOURCE}:{file.name}", file)

    def find_split(self, place: str | None, split: str) -> str:
        """All of it."""
        return WHOLE

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions; each needs an answer, and right is what says one of its answers."""
        return Reread(lambda: read_lines(self.file, _record, _MEND, "question")), says_one_of


def says_one_of(given: str, answers: Sequence[str]) -> float:
    """1 if an answer occurs in what was said, in whole words but for case and punctuation; else 0."""
    words = f" {normalise_answer(given)} "
    return float(any(f" {normalise_answer(each)} " in words for each in answers if normalise_answer(each)))


def text_examples(source: str, split: str, count: int, seed: int) -> Iterator[VQAExample]:
    """The questions of `text:FILE` as `aegis_policy.vqa.examples` wants them of a source.

    Raises:
        AegisError: the file is none of questions, or a line of it cannot be used.
    """
    file = text_file(source)
    if file is None or file.suffix != QUESTIONS:
        raise AegisError(f"questions come from a file, as {SOURCE}:FILE{QUESTIONS}: name one.")
    for sample in TextQuestions.of(file).drawn(None, split, count, seed)[0]:
        yield VQAExample(None, sample.question, sample.answer, rule=sample.score, origin=sample.origin)


def _record(origin: str, number: int, line: Json) -> Record:
    record = record_of(line, number - 1, origin)
    if mute := [each for each in record.answers if not normalise_answer(each)]:
        raise ValueError(f"its answer {shown(mute[0])} has no word")
    return replace(record, picture=None)
