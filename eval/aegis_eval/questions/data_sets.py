"""Questions from anything that the `datasets` library reads: a folder, or an id of the hub.

The columns are those of `aegis_eval.questions.own`; other forms of a picture or an answer are brought to these.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import datasets
from PIL import Image

from aegis_eval.questions.records import WHOLE, Json, Record, Reread, record_of, usable
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.files import is_file
from aegis_policy.vqa.examples import NoQuestionsError

_PICTURE = "image"
"""The column of pictures, where a data set has one alone."""
_GQA_TEXTS, _GQA_IMAGES = "_instructions", "_images"
"""GQA's data set keeps its pictures, with an `id`, in a configuration of their own."""


def splits_of(name: str) -> list[str]:
    """The splits of a data set.

    Raises:
        NoQuestionsError: there is no such data set.
    """
    try:
        return list(_splits(name, None))
    except Exception as error:  # from `datasets`, anything
        raise NoQuestionsError(name, one_line(error, 200)) from error


def read_data_set(
    name: str,
    splits: Sequence[str],
    config: str | None = None,
    *,
    answered: bool = True,
    columns: tuple[str, ...] = (_PICTURE,),
    finish: Callable[[Record, Json], Record] = lambda record, _: record,
    mend: str = "rename them",
) -> Reread[Record]:
    """The questions of a data set.

    Args:
        name: of the folder, or the id.
        splits: what the split may be called; the first that exists is read.
        config: of the data set, if it has one of that name.
        answered: refuse questions without answers.
        columns: with pictures; of several, a question is about those that it names as MMMU does, `<image 2>`
            being `image_2`, and if it names none about the first.
        finish: makes of a record and its row what a benchmark asks; refuses with a ValueError.
        mend: what to do where columns are missing.

    Raises:
        AegisError: there is no such data set, split or column; on reading, names a row that cannot be used.
    """
    rows = pictures = _load(name, splits, config)
    if _PICTURE not in rows.column_names and config is not None and config.endswith(_GQA_TEXTS):
        pictures = _load(name, splits, config.removesuffix(_GQA_TEXTS) + _GQA_IMAGES)
    missing = [
        " or ".join(names)
        for names in (("question",), *([("answers", "answer")] if answered else []))
        if not set(names) & set(rows.column_names)
    ]
    missing += [column for column in columns if column not in pictures.column_names]
    if missing:
        which = "it, saved without splits," if _is_whole(name) else f"split {splits[0]}"
        raise AegisError(
            f"{name}: {which} has no column {', '.join(missing)} but {', '.join(rows.column_names)}: {mend}."
        )
    decoded = _with_pictures(pictures, columns, name)
    return Reread(partial(_records, name, rows, pictures, decoded, columns, answered, finish))


def _is_whole(name: str) -> bool:
    return (Path(name) / "dataset_info.json").is_file()


def _is_saved(name: str) -> bool:
    return (Path(name) / "dataset_dict.json").is_file()


def _splits(name: str, config: str | None) -> Iterable[str]:
    if _is_whole(name):
        return (WHOLE,)
    return (
        datasets.load_from_disk(name) if _is_saved(name) else datasets.get_dataset_split_names(name, config)
    )


def _load(name: str, splits: Sequence[str], config: str | None) -> datasets.Dataset:
    try:
        saved = _is_whole(name) or _is_saved(name)
        known = None if saved or config not in datasets.get_dataset_config_names(name) else config
        if not saved and known is None and config is not None and (Path(name) / config).is_dir():
            name = str(Path(name) / config)  # files as the hub has them, without its card
        there = list(_splits(name, known))
        split = next((each for each in splits if each in there), None)
        if split is None:
            raise ValueError(f"it has {', '.join(there)}, so ask for one of these")
        if not saved:
            return datasets.load_dataset(name, known, split=split)
        found = datasets.load_from_disk(name)
        return found if _is_whole(name) else found[split]
    except Exception as error:  # from `datasets`, anything
        raise AegisError(
            f"{name}: split {splits[0]} of it cannot be read as a data set ({one_line(error, 200)}): name a folder or "
            "an id that datasets.load_dataset reads."
        ) from error


def _with_pictures(rows: datasets.Dataset, columns: Sequence[str], name: str) -> datasets.Dataset:
    """The same, pictures decoded whatever wrote them: bytes with a path, or the name of a file."""
    for column in columns:
        if isinstance(rows.features[column], datasets.Image):
            continue
        try:
            rows = rows.cast_column(column, datasets.Image())
        except Exception as error:  # from `datasets` and Arrow, anything
            raise AegisError(
                f"{name}: its column {column} ({rows.features[column]}) holds no pictures that datasets.Image decodes."
            ) from error
    return rows


def _records(
    name: str,
    rows: datasets.Dataset,
    pictures: datasets.Dataset,
    decoded: datasets.Dataset,
    columns: Sequence[str],
    answered: bool,
    finish: Callable[[Record, Json], Record],
) -> Iterator[Record]:
    place = None if pictures is rows else {str(each): index for index, each in enumerate(pictures["id"])}
    named = place is None and pictures.features[columns[0]] == datasets.Value("string")
    texts = rows.select_columns([each for each in rows.column_names if each not in columns or named])
    classes = {key: each for key, each in rows.features.items() if isinstance(each, datasets.ClassLabel)}

    def record(origin: str, index: int, row: Json) -> Record:
        row = {**row, **{key: _class_name(each, row[key]) for key, each in classes.items()}}
        found = finish(record_of(row, index, origin, answered=answered), row)
        if named and row[columns[0]] and is_file(beside := Path(name) / row[columns[0]]):
            return replace(found, picture=beside)
        if place is not None and found.image not in place:
            raise ValueError(f"there is no picture of its image {found.image}")
        number = index if place is None else place[found.image]
        asked = [each for each in columns if f"<{each.replace('_', ' ')}>" in found.question] or columns[:1]
        first, *further = (partial(_opened, decoded, number, column) for column in asked)
        return replace(found, picture=first, further=tuple(further))

    return usable(enumerate(texts), f"{name} row", record, "mend that row, or leave it out.")


def _class_name(classes: datasets.ClassLabel, number: int | None) -> str | None:
    """What a number stands for in a column of classes; -1 says that nobody knows."""
    return None if number in (None, -1) else classes.int2str(number)


def _opened(rows: datasets.Dataset, index: int, column: str) -> Image.Image:
    image = rows.select_columns(column)[index][column]
    if image is None:
        raise OSError(f"its row has no {column}")
    return image
