"""A question as its source has it, and what of a source's JSON counts as a text, a name, a picture's file or an answer.

Every reader asks here, so that a value means the same in official files, data sets and one's own lines. What cannot be
meant is a `ValueError` that says why; readers add where.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aegis_policy.support.errors import AegisError

Json = Mapping[str, Any]
Picture = Path | Callable[[], Image.Image]
Metric = Callable[[str, Sequence[str]], float]
"""The score from 0 to 1 of an answer, given what is right."""
ONE_TYPE = "question"
"""The type of questions that nobody has sorted."""
WHOLE = "all"
"""The split of questions that are not split."""
_LONGEST_TEXT = 10_000
"""Characters; a question of a book would fill the memory of whoever reads it."""

_LONGEST_NAME = 500


@dataclass(frozen=True)
class Record:
    """A question.

    Attributes:
        id: of the question.
        image: names the picture among all.
        picture: its file, or what opens it; None where the question is about none.
        further: pictures beside it, in the order of the question.
        question: text.
        answers: what people said, or the one right answer; empty if nobody said anything.
        type: of the question, as the source sorts them.
        origin: where the source has it, a file and a line for instance.
        metric: its own, where a benchmark's questions are not all scored alike.
        chance: how right a guess among its options is, from 0 to 1; None where it has none.
    """

    id: str
    image: str
    picture: Picture | None
    question: str
    answers: tuple[str, ...]
    type: str
    origin: str
    metric: Metric | None = None
    chance: float | None = None
    further: tuple[Picture, ...] = ()


class Reread[T](Iterable[T]):
    """What can be gone through again and again, and is read anew each time instead of being kept."""

    def __init__(self, read: Callable[[], Iterator[T]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[T]:
        return self._read()


def usable[Value](
    entries: Iterable[tuple[int, Any]], where: str, read: Callable[[str, int, Json], Value], mend: str
) -> Iterator[Value]:
    """What `read` makes of (origin, number, entry), in turn.

    Args:
        entries: with their numbers.
        where: they are, so that `where` with a number is an entry's origin.
        read: refuses with a ValueError.
        mend: what to do about an entry that is refused.

    Raises:
        AegisError: with origin, reason and `mend`, of the first that is refused or no object.
    """
    for number, entry in entries:
        origin = f"{where} {number}"
        try:
            if not isinstance(entry, Mapping):
                raise ValueError(f"it is {shown(entry)}, no object")
            value = read(origin, number, entry)
        except ValueError as error:
            raise AegisError(f"{origin} is not usable ({error}): {mend}") from error
        yield value


def record_of(
    row: Json, index: int, origin: str, image: str | None = None, *, answered: bool = True
) -> Record:
    """The record of a line or row of one's own, its picture being left for others to find.

    Args:
        row: with the columns that `aegis_eval.questions.own` names.
        index: of the row, which is its id if it has none.
        origin: of the row.
        image: names its picture if no column does; the index if left open.
        answered: refuse a row without an answer.

    Raises:
        ValueError: what cannot be used.
    """
    identity = _first(row, ("question_id", "id"), None)
    said = answers(row.get("answers")) or answers(row.get("answer"))
    if answered and not said:
        raise ValueError(f"{'it' if identity is None else f'question {shown(identity)}'} has no answer")
    named = _first(row, ("imageId", "image_id", "image_source"), None)
    return Record(
        id=label(index if identity is None else identity, "id"),
        image=(image or str(index)) if named is None else label(named, "image id"),
        picture=Path(),
        question=text(field(row, "question"), "question"),
        answers=said,
        type=label(_first(row, ("answer_type", "category", "type"), ONE_TYPE), "type"),
        origin=origin,
    )


def field(entry: Json, name: str) -> Any:
    """A field that has to be there."""
    if name not in entry:
        raise ValueError(f"it has no {name}")
    return entry[name]


def text(value: Any, what: str) -> str:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"its {what} is {shown(value)}, no text")
    return _whole(value, what)


def label(value: Any, what: str) -> str:
    """A name or number that something is called by."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"its {what} is {shown(value)}, neither text nor number")
    name = _whole(_as_text(value, what), what)
    if len(name) > _LONGEST_NAME or name.splitlines() != [name] or not name.strip():
        raise ValueError(f"its {what} is {shown(name)}, no name")
    return name


def file_name(value: Any, what: str) -> str:
    """The name of a file in a folder, or below it, and nowhere else."""
    name = text(value, what)
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"its {what} has {len(name)} characters, as no file's name has")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"its {what} {shown(name)} lies outside the folder; put it, or a link to it, there")
    return name


def answers(value: Any) -> tuple[str, ...]:
    """What people said: a text, a number or a yes or no (as JSON writes it), or a list of these.

    Each may be the `answer` of an object, as VQAv2 has them. Null, an empty list and blanks alone are no answer; one
    blank among others is somebody who said nothing, and counts.
    """
    if isinstance(value, Mapping):
        value = field(value, "answer")
    if value is None:
        return ()
    several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    said = tuple(_answer(each) for each in several)
    return said if any(each.strip() for each in said) else ()


def shown(value: Any) -> str:
    """A value in an error: as JSON has it, but not all of what is long."""
    if isinstance(value, str):
        return json.dumps(value if len(value) <= 60 else f"{value[:60]}...")
    if value is None or isinstance(value, bool | float):
        return json.dumps(value)
    return f"{value}" if isinstance(value, int) else f"a {type(value).__name__}"


def _first(row: Json, names: Iterable[str], otherwise: object) -> object:
    """What the first of some columns says that says something: neither null nor blank."""
    said = (row.get(name) for name in names)
    return next((each for each in said if each is not None and str(each).strip()), otherwise)


def _answer(value: Any) -> str:
    if isinstance(value, Mapping):
        value = field(value, "answer")
    if not isinstance(value, str | int | float):
        raise ValueError(f"its answer holds {shown(value)}, which nobody can say")
    return _whole(_as_text(value, "answer"), "answer")


def _as_text(value: str | float, what: str) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"its {what} is {value}, no number")
    # Tables have whole numbers as floats where a row lacks one.
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _whole(written: str, what: str) -> str:
    """A text that can be written down and is not endless."""
    if len(written) > _LONGEST_TEXT:
        raise ValueError(f"its {what} has {len(written)} characters, more than {_LONGEST_TEXT}")
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its {what} holds half a character ({shown(written[error.start])})") from error
    return written
