"""Multiple-choice benchmarks from the files that the hub hands out: which letter does the model say?

Options stand in the prompt and answers are read as in lmms-eval 0.7.3, so that figures can be compared.
"""

import base64
import csv
import io
import re
import string
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from aegis_eval.questions.from_records import Figures, ReadBenchmark
from aegis_eval.questions.mmmu import mmmu_record, says_openly
from aegis_eval.questions.official_letters import first_option_letter, option_letter, single_option
from aegis_eval.questions.official_scores import matches
from aegis_eval.questions.records import Json, Metric, Record, field, record_of, shown, usable
from aegis_eval.questions.sample import Sample
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.families import WholePrompt
from aegis_policy.vqa.sources import expanded

_LETTERS = ("A", "B", "C", "D")
"""Of MMStar and RealWorldQA, whatever options a question has."""
_DIRECTLY = "Answer with the option's letter from the given choices directly"
_WHOLE_FILE = "train"
"""What `datasets` calls the split of a file whose name says none."""
_ROTATION = 1_000_000
"""What is added to the index of MMBench's question for each further order of its options."""
_LARGEST_PICTURE = 2**30
"""Characters of a picture in base64."""
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
        config: of the data set.
        pictures: the columns of its pictures.
        table: what the authors' own table is called, where the hub has another form of it.
        extra: figures reported besides accuracy.
    """

    name: str
    lmms_eval_task: str | None
    data_set: str
    finish: Callable[[Record, Json], Record]
    metric: Metric
    reported: str = "test"
    called: tuple[str, ...] = (_WHOLE_FILE,)
    config: str | None = None
    pictures: tuple[str, ...] = ("image",)
    table: str | None = None
    extra: Callable[[Sequence[Sample], Sequence[str]], Figures] | None = None

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions of the hub's files or of the authors' table in a folder, or of the hub."""
        if split != self.reported:
            raise AegisError(
                f"{self.name} has answers for its split {self.reported} alone, none for {split}."
            )
        tables = sorted(Path(expanded(place)).glob(self.table)) if place and self.table else []
        if len(tables) > 1:
            raise AegisError(f"{place} holds {tables[0].name} and {tables[1].name}: leave one of them there.")
        if tables:
            return [*_read_table(tables[0], self.finish)], self.metric
        from aegis_eval.questions.data_sets import read_data_set

        name, splits = expanded(place or self.data_set), [split, *self.called]
        return read_data_set(
            name, splits, self.config, columns=self.pictures, finish=self.finish
        ), self.metric

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Figures:
        """MMBench's accuracy over all rotations of its questions; of the others nothing."""
        return self.extra(samples, given) if self.extra is not None else {}


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


def _mmbench(record: Record, row: Json) -> Record:
    """A question, or the same with its options in another order: the number of the question counts on by a million."""
    options = {letter: str(row[letter]) for letter in "ABCDE" if _is_said(row.get(letter))}
    hint = f"{row['hint']} " if _is_said(row.get("hint")) else ""
    listed = "\n".join(f"{letter}. {option}" for letter, option in options.items())
    index = _index(record, row)
    if not index.isdecimal():
        raise ValueError(f"its index is {shown(index)}, no number")
    return replace(
        record,
        id=index,
        image=str(int(index) % _ROTATION),
        question=WholePrompt(f"{hint}{record.question} There are several options:\n{listed}\n\n{_DIRECTLY}."),
        answers=(_letter(record, [*options]),),
        metric=partial(_says_single, options),
        chance=1 / len(options),
    )


def circular_figures(samples: Sequence[Sample], given: Sequence[str]) -> Figures:
    """MMBench's own measure (CircularEval): a question counts as right if it is in each order of its options.

    It is over the questions that were asked in as many orders as they have options; nothing if none was.
    """
    scores: dict[str, list[float]] = defaultdict(list)
    about = {str(sample.scene): sample for sample in samples}
    for sample, said in zip(samples, given, strict=True):
        scores[str(sample.scene)].append(sample.score(said))
    hits: dict[str, list[float]] = defaultdict(list)
    for scene, sample in about.items():
        if sample.chance is not None and len(scores[scene]) == round(1 / sample.chance):
            for kind in ("all", sample.type):
                hits[kind].append(min(scores[scene]))
    return {"circular": {kind: sum(each) / len(each) for kind, each in hits.items()}} if hits else {}


def _read_table(path: Path, finish: Callable[[Record, Json], Record]) -> Iterator[Record]:
    """The questions of a table with tabs between its columns and pictures in base64, or the index of a row with one."""
    csv.field_size_limit(_LARGEST_PICTURE)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [*csv.DictReader(file, delimiter="\t")]
    except (OSError, ValueError, csv.Error) as error:
        raise AegisError(f"{path} cannot be read ({error}): take the official file as it is.") from error
    pictures = {str(row.get("index")): row.get("image") or "" for row in rows}

    def record(origin: str, number: int, row: Json) -> Record:
        picture = str(field(row, "image"))
        picture = pictures.get(picture, picture)
        return replace(finish(record_of(row, number - 1, origin), row), picture=partial(_decoded, picture))

    return usable(enumerate(rows, start=1), f"{path} row", record, "take the official file as it is.")


def _decoded(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(picture)))


def _is_said(value: Any) -> bool:
    """Whether a cell holds something; tables have `nan` where it does not."""
    return value is not None and str(value).strip() not in ("", "nan")


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


def _says_single(options: Mapping[str, str], given: str, answers: Sequence[str]) -> float:
    return float(single_option(given.strip(), options) == answers[0])


def _says_word(given: str, answers: Sequence[str]) -> float:
    return float(given.lower().strip().rstrip(".") == answers[0].strip().lower())


def _begins_with_letter(given: str, answers: Sequence[str]) -> float:
    return float(matches(first_option_letter(given), answers[0]))


CHOICES: dict[str, ChoiceBenchmark] = {
    each.name: each
    for each in (
        ChoiceBenchmark(
            "mmstar",
            lmms_eval_task=None,  # which averages categories
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
        ChoiceBenchmark(
            "mmbench",
            lmms_eval_task=None,  # which tells `circular` alone
            data_set="lmms-lab-encoder/MMBench",
            finish=_mmbench,
            metric=_says_letter,
            reported="dev",
            called=("validation", _WHOLE_FILE),
            config="en",
            table="*MMBench_DEV_EN*.tsv",
            extra=circular_figures,
        ),
        ChoiceBenchmark(
            "mmmu",
            lmms_eval_task=None,  # which draws an option where none was named
            data_set="lmms-lab-encoder/MMMU",
            finish=mmmu_record,
            metric=says_openly,
            reported="val",
            called=("validation", _WHOLE_FILE),
            pictures=tuple(f"image_{number}" for number in range(1, 8)),
        ),
    )
}
