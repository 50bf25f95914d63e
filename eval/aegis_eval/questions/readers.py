"""Questions with people's answers, from the official files of public benchmarks or from the `datasets` library.

Questions are read at once, images one by one when they are asked for.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, read_jsonl

Json = Mapping[str, Any]
Picture = Path | Callable[[], Image.Image]


@dataclass(frozen=True)
class Record:
    """A question as its source has it.

    Attributes:
        id: of the question.
        image: names the picture among all.
        picture: its file, or what opens it.
        question: text.
        answers: what people said, or the one right answer; never empty.
        type: of the question, as the source sorts them.
    """

    id: str
    image: str
    picture: Picture
    question: str
    answers: tuple[str, ...]
    type: str


Reader = Callable[[Path, Sequence[Path], str], Iterator[Record]]
"""Records from the folder of a benchmark, its official files and their split."""


def read_coco(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """VQAv2 and OK-VQA: a file of questions and one of annotations about the images of COCO."""
    questions, annotations = files
    about = {each["question_id"]: each for each in read_json(annotations)["annotations"]}
    for each in read_json(questions)["questions"]:
        known = about[each["question_id"]]
        yield Record(
            id=str(each["question_id"]),
            image=str(each["image_id"]),
            picture=root / split / f"COCO_{split}_{each['image_id']:012d}.jpg",
            question=each["question"],
            answers=tuple(said["answer"] for said in known["answers"]),
            type=known["answer_type"],
        )


def read_textvqa(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """TextVQA; the images of both splits lie in one folder."""
    for each in read_json(files[0])["data"]:
        yield Record(
            id=str(each["question_id"]),
            image=each["image_id"],
            picture=root / "train_images" / f"{each['image_id']}.jpg",
            question=each["question"],
            answers=tuple(each["answers"]),
            type=_ONE_TYPE,
        )


def read_gqa(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """GQA: one answer a question; its structural types."""
    for name, each in read_json(files[0]).items():
        yield Record(
            id=name,
            image=each["imageId"],
            picture=root / "images" / f"{each['imageId']}.jpg",
            question=each["question"],
            answers=(each["answer"],),
            type=each["types"]["structural"],
        )


def read_pope(root: Path, files: Sequence[Path], split: str) -> Iterator[Record]:
    """POPE: a file for each way in which the absent objects were chosen, a question a line."""
    for path in files:
        kind = path.stem.removeprefix("coco_pope_")
        for each in read_jsonl(path):
            yield Record(
                id=f"{kind}-{each['question_id']}",
                image=each["image"],
                picture=root / split / each["image"],
                question=each["text"],
                answers=(each["label"],),
                type=kind,
            )


def read_data_set(name: str, splits: Sequence[str], config: str | None = None) -> Iterator[Record]:
    """A data set with `image`, `question` and `answers` or `answer`: a folder of one, or an id of the hub.

    Answers are texts, one text, or as VQAv2 has them, {"answer": text}. Where there is `question_id` or `id` it is the
    question's, where there is `imageId`, `image_id` or `image_source` the image's (or else every row is an image of its
    own), and `answer_type`, `category` or `type` sorts the questions.

    Args:
        name: of the folder, or the id.
        splits: what the split may be called; the first that exists is read.
        config: of the data set, if it has one of that name.

    Raises:
        AegisError: there is no such data set, split or column.
    """
    rows = pictures = _load(name, splits, config)
    if "image" not in rows.column_names and config is not None and config.endswith(_GQA_TEXTS):
        pictures = _load(name, splits, config.removesuffix(_GQA_TEXTS) + _GQA_IMAGES)
    missing = [
        " or ".join(names)
        for names in (("question",), ("answers", "answer"))
        if not set(names) & set(rows.column_names)
    ]
    if "image" not in pictures.column_names:
        missing.append("image")
    if missing:
        raise AegisError(
            f"{name}: split {splits[0]} has no column {', '.join(missing)} but {', '.join(rows.column_names)}: "
            "rename them."
        )
    decoded = _with_pictures(pictures, name)
    return _records(decoded if pictures is rows else rows, decoded)


def _with_pictures(rows: datasets.Dataset, name: str) -> datasets.Dataset:
    """The same, `image` decoded whatever wrote it: bytes with a path, or the name of a file."""
    if isinstance(rows.features["image"], datasets.Image):
        return rows
    try:
        return rows.cast_column("image", datasets.Image())
    except Exception as error:  # from `datasets` and Arrow, anything
        raise AegisError(
            f"{name}: its column image ({rows.features['image']}) holds no pictures that datasets.Image decodes."
        ) from error


_ONE_TYPE = "question"
"""The type of questions that nobody has sorted."""
_GQA_TEXTS, _GQA_IMAGES = "_instructions", "_images"
"""GQA's data set keeps its pictures, with an `id`, in a configuration of their own."""


def _records(rows: datasets.Dataset, pictures: datasets.Dataset) -> Iterator[Record]:
    place = None if pictures is rows else {str(each): index for index, each in enumerate(pictures["id"])}
    texts = rows.select_columns([each for each in rows.column_names if each != "image"])
    for index, row in enumerate(texts):
        image = str(_first(row, ("imageId", "image_id", "image_source"), index))
        yield Record(
            id=str(_first(row, ("question_id", "id"), index)),
            image=image,
            picture=_row_opener(pictures, index if place is None else place[image]),
            question=row["question"],
            answers=_texts(row.get("answers") or row.get("answer") or ()),
            type=str(_first(row, ("answer_type", "category", "type"), _ONE_TYPE)),
        )


def _load(name: str, splits: Sequence[str], config: str | None) -> datasets.Dataset:
    folder = Path(name)
    try:
        if (folder / "dataset_info.json").is_file():
            raise ValueError("it is saved without splits; save a datasets.DatasetDict")
        if (folder / "dataset_dict.json").is_file():
            saved = datasets.load_from_disk(name)
            return saved[_one_of(splits, saved)]
        known = datasets.get_dataset_config_names(name)
        config = config if config in known else None
        return datasets.load_dataset(
            name, config, split=_one_of(splits, datasets.get_dataset_split_names(name, config))
        )
    except Exception as error:  # from `datasets`, anything
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise AegisError(
            f"{name}: split {splits[0]} of it cannot be read as a data set ({what}): name a folder or an id that "
            "datasets.load_dataset reads."
        ) from error


def _one_of(wanted: Sequence[str], there: Iterable[str]) -> str:
    there = list(there)
    for split in wanted:
        if split in there:
            return split
    raise ValueError(f"it has {', '.join(there)}, so ask for one of these")


def _first(row: Json, names: Iterable[str], otherwise: object) -> object:
    return next((row[name] for name in names if row.get(name) is not None), otherwise)


def _texts(answers: object) -> tuple[str, ...]:
    if isinstance(answers, str):
        return (answers,)
    if not isinstance(answers, Sequence):
        raise ValueError(f"{answers!r} is no answer")
    return tuple(each["answer"] if isinstance(each, dict) else str(each) for each in answers)


def _row_opener(rows: datasets.Dataset, index: int) -> Callable[[], Image.Image]:
    def opened() -> Image.Image:
        image = rows[index]["image"]
        if image is None:
            raise OSError("its row has none")
        return image

    return opened
