"""One's own questions: a folder of pictures with a `questions.jsonl`, or anything that the `datasets` library reads.

Both have the same columns: `image`, `question`, and `answers` or `answer` as `records.answers` takes them. Where there
is `question_id` or `id` it is the question's, where there is `imageId`, `image_id` or `image_source` the image's, and
`answer_type`, `category` or `type` sorts the questions.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from aegis_eval.questions.records import WHOLE, Json, Record, Reread, field, record_of, shown, text, usable
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import is_file
from aegis_policy.support.json_files import LineError, iterate_jsonl
from aegis_policy.vqa.examples import INDEX_FILE

_VALIDATION = ("val", "validation", "valid", "dev")
_SPLITS = {"train": ("train",), "val": _VALIDATION, "test": ("test",)}
"""What a command reads -> what that split may be called."""
_STAND_INS = {"train": (), "val": ("test",), "test": _VALIDATION}
"""What a command reads -> what is read with a warning where there is no such split."""


def has_index(place: str) -> bool:
    """Whether a place is a folder with a `questions.jsonl`."""
    return is_file(Path(place) / INDEX_FILE)


def find_split(place: str, wanted: str) -> str:
    """The split of one's own questions that is read for `train`, `val` or `test`, or has the name that is wanted.

    A folder with a `questions.jsonl` has no splits, all commands read all of it; a data set's only split is read
    whatever it is called.

    Raises:
        AegisError: there is no such split, or no data set.
    """
    if has_index(place):
        return WHOLE
    if wanted not in _SPLITS:
        return wanted
    from aegis_eval.questions.data_sets import splits_of  # and with it `datasets`, which takes a second

    there = splits_of(place)
    found = [split for split in (*_SPLITS[wanted], *_STAND_INS[wanted]) if split in there]
    if not found and len(there) > 1:
        raise AegisError(f"{place} has the splits {', '.join(there)}: call one of them {wanted}.")
    split = (found or there)[0]
    if split not in (*_SPLITS[wanted], WHOLE):
        logging.warning("%s has no split %s: its split %s is read.", place, wanted, split)
    return split


def read_own(place: str, split: str, *, answered: bool = True) -> Reread[Record]:
    """One's own questions.

    Args:
        place: the folder, or what `datasets.load_dataset` reads.
        split: as `find_split` found it.
        answered: refuse questions without answers.

    Raises:
        AegisError: there is no such data set, split or column; on reading, names what cannot be used and where it is.
    """
    if has_index(place):
        return Reread(partial(_read_folder, Path(place), answered))
    from aegis_eval.questions.data_sets import read_data_set

    beside = f", or put a {INDEX_FILE} into that folder" if Path(place).is_dir() else ""
    return read_data_set(place, [split], answered=answered, mend=f"rename them{beside}")


def _read_folder(folder: Path, answered: bool) -> Iterator[Record]:
    said = ', "answer": text}' if answered else "}"
    mend = f'it must be {{"image": a picture file beside it, "question": text{said}.'

    def record(origin: str, number: int, line: Json) -> Record:
        name = text(field(line, "image"), "image")
        if not is_file(folder / name):
            raise ValueError(f"there is no picture {shown(name)}")
        return replace(record_of(line, number - 1, origin, name, answered=answered), picture=folder / name)

    return read_lines(folder / INDEX_FILE, record, mend, "image-question pair")


def read_lines(
    file: Path, record: Callable[[str, int, Json], Record], mend: str, each_is: str
) -> Iterator[Record]:
    """The records of a file with a line of JSON for each.

    Args:
        file: of questions.
        record: makes them of an origin, a number and a line, or refuses with a ValueError.
        mend: what a line must be.
        each_is: what there is a line for.

    Raises:
        AegisError: the file cannot be read, is empty, or has a line that is refused.
    """
    empty = True
    try:
        for each in usable(iterate_jsonl(file), f"{file} line", record, mend):
            empty = False
            yield each
    except LineError as error:
        raise AegisError(f"{file} line {error.number} is not usable ({error.reason}): {mend}") from error
    except OSError as error:
        raise AegisError(f"{file} cannot be read ({error.strerror}): see to it that it can.") from error
    if empty:
        raise AegisError(f"{file} is empty: it needs a line for every {each_is}.")
