"""Questions with people's answers from the official files of public benchmarks.

Questions are read at once, images one by one when they are asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aegis_eval.questions.records import (
    ONE_TYPE,
    Json,
    Record,
    answers,
    field,
    file_name,
    label,
    shown,
    text,
    usable,
)
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import LineError, iterate_jsonl, read_json

Reader = Callable[[Path, Sequence[Path], str], Iterator[Record]]
"""Records from the folder of a benchmark, its official files and their split."""
_AS_IT_IS = "take the official file as it is."
_LONGEST_NUMBER = 12
"""Digits of a number in the name of a COCO image."""


def read_coco(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """VQAv2 and OK-VQA: a file of questions and one of annotations about the images of COCO."""
    questions, annotations = files
    about: dict[str, Json] = {}

    def annotation(_origin: str, _number: int, each: Json) -> tuple[str, Json]:
        identity = label(field(each, "question_id"), "question_id")
        if identity in about:
            raise ValueError(f"it is the second of question {identity}")
        return identity, each

    numbered = enumerate(_entries(annotations, "annotations"), start=1)
    for identity, each in usable(numbered, f"{annotations} annotation", annotation, _AS_IT_IS):
        about[identity] = each

    def record(origin: str, _number: int, each: Json) -> Record:
        identity, image = label(field(each, "question_id"), "question_id"), field(each, "image_id")
        if identity not in about:
            raise ValueError(f"{annotations.name} has no annotation of question {identity}")
        if type(image) is not int or not 0 <= image < 10**_LONGEST_NUMBER:
            raise ValueError(f"its image_id is {shown(image)}, no number of an image")
        return Record(
            id=identity,
            image=str(image),
            picture=root / split / f"COCO_{split}_{image:0{_LONGEST_NUMBER}d}.jpg",
            question=text(field(each, "question"), "question"),
            answers=_said(field(about[identity], "answers")),
            type=label(field(about[identity], "answer_type"), "answer_type"),
            origin=origin,
        )

    return _records(questions, _entries(questions, "questions"), record)


def read_textvqa(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """TextVQA; the images of both splits lie in one folder."""

    def record(origin: str, _number: int, each: Json) -> Record:
        image = file_name(field(each, "image_id"), "image_id")
        return Record(
            id=label(field(each, "question_id"), "question_id"),
            image=image,
            picture=root / "train_images" / f"{image}.jpg",
            question=text(field(each, "question"), "question"),
            answers=_said(field(each, "answers")),
            type=ONE_TYPE,
            origin=origin,
        )

    return _records(files[0], _entries(files[0], "data"), record)


def read_gqa(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """GQA: one answer a question; its structural types."""
    found = _read(files[0])
    if not isinstance(found, dict):
        raise AegisError(f"{files[0]} holds no object of questions: {_AS_IT_IS}")
    names = list(found)

    def record(origin: str, number: int, each: Json) -> Record:
        image = file_name(field(each, "imageId"), "imageId")
        types = field(each, "types")
        if not isinstance(types, dict):
            raise ValueError(f"its types are {shown(types)}, no object")
        return Record(
            id=label(names[number - 1], "name"),
            image=image,
            picture=root / "images" / f"{image}.jpg",
            question=text(field(each, "question"), "question"),
            answers=_one(field(each, "answer")),
            type=label(field(types, "structural"), "structural type"),
            origin=origin,
        )

    return _records(files[0], list(found.values()), record)


def read_pope(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """POPE: a file for each way in which the absent objects were chosen, a question a line."""
    for path in files:
        try:
            yield from usable(
                iterate_jsonl(path), f"{path} line", partial(_pope, root / split, path), _AS_IT_IS
            )
        except LineError as error:
            raise AegisError(
                f"{path} line {error.number} is not usable ({error.reason}): {_AS_IT_IS}"
            ) from error


def _pope(pictures: Path, path: Path, origin: str, _number: int, each: Json) -> Record:
    kind = path.stem.removeprefix("coco_pope_")
    image = file_name(field(each, "image"), "image")
    return Record(
        id=f"{kind}-{label(field(each, 'question_id'), 'question_id')}",
        image=image,
        picture=pictures / image,
        question=text(field(each, "text"), "text"),
        answers=_one(field(each, "label")),
        type=kind,
        origin=origin,
    )


def _records(
    path: Path, entries: Iterable[Any], read: Callable[[str, int, Json], Record]
) -> Iterator[Record]:
    return usable(enumerate(entries, start=1), f"{path} question", read, _AS_IT_IS)


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise AegisError(f"{path} cannot be read ({error}): {_AS_IT_IS}") from error


def _entries(path: Path, name: str) -> list[Any]:
    found = _read(path)
    entries = found.get(name) if isinstance(found, dict) else None
    if not isinstance(entries, list):
        raise AegisError(f"{path} holds no list of {name}: {_AS_IT_IS}")
    return entries


def _said(value: Any) -> tuple[str, ...]:
    said = answers(value)
    if not said:
        raise ValueError("it has no answer")
    return said


def _one(value: Any) -> tuple[str, ...]:
    said = _said(value)
    if len(said) > 1:
        raise ValueError(f"it has {len(said)} answers, not one")
    return said
