"""Questions about images, by name: a folder of them, or a source that an installed package offers.

`replay` trains on them, the probe asks them, `aegis-anchor` runs the pretrained model over them. A package offers a
source as an entry point of the group `aegis_policy.vqa`: a function `(source, split, count, seed) -> iterable of
VQAExample`. What a user wrote, NAME or NAME:PLACE, is `source`.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from aegis_policy.support.errors import AegisError

ENTRY_POINTS = "aegis_policy.vqa"
INDEX_FILE = "questions.jsonl"


@dataclass(frozen=True)
class VQAExample:
    """One image (H, W, 3) uint8, a question about it and, where known, the answer."""

    image: NDArray[np.uint8]
    question: str
    answer: str | None = None


def load_vqa(
    source: str,
    flag: str,
    *,
    split: str = "train",
    count: int,
    seed: int = 0,
    with_answers: bool = False,
) -> Iterator[VQAExample]:
    """The first `count` examples of a source; a folder that holds fewer gives all it has.

    Args:
        source: the name of an offered source, with `:` and the place of its files if it takes one; or a folder with a
            `questions.jsonl` whose lines are {"image": file in that folder, "question": text, "answer": text}.
        flag: how errors call what named the source.
        split: of an offered source; a folder has none.
        count: at most so many.
        seed: of an offered source.
        with_answers: refuse an example without an answer.

    Raises:
        AegisError: there is no such source, it is empty, or a line of it cannot be used.
    """
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    named = f"{flag}={source}"
    name = source.partition(":")[0]
    if name in offered:
        examples: Iterable[VQAExample] = offered[name].load()(source, split, count, seed)
    else:
        examples = _read_folder(Path(source), named, sorted(offered), with_answers)
    return _checked(islice(examples, count), named, with_answers)


def _checked(examples: Iterable[VQAExample], named: str, with_answers: bool) -> Iterator[VQAExample]:
    number = 0
    for number, example in enumerate(examples, start=1):
        if with_answers and example.answer is None:
            raise AegisError(f"{named}: example {number} has no answer, and answers are needed.")
        yield example
    if number == 0:
        raise AegisError(f"{named} holds no example: name another source.")


def normalise_answer(text: str) -> str:
    """Lower case, punctuation removed, white space collapsed."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same after `normalise_answer`."""
    return normalise_answer(prediction) == normalise_answer(answer)


def _read_folder(folder: Path, named: str, offered: list[str], with_answers: bool) -> Iterator[VQAExample]:
    index = folder / INDEX_FILE
    if not index.is_file():
        raise AegisError(
            f"{named} is neither one of {', '.join(offered) or 'no offered sources'} (a public benchmark with the "
            f"place of its files, as vqav2:FOLDER) nor a folder with a {INDEX_FILE}: write one with lines like "
            '{"image": "0.png", "question": "what is this?"}.'
        )
    lines = [line for line in index.read_text().splitlines() if line.strip()]
    if not lines:
        raise AegisError(f"{index} is empty: it needs a line for every image-question pair.")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            answer = str(record["answer"]) if with_answers or "answer" in record else None
            with Image.open(folder / record["image"]) as image:
                yield VQAExample(np.array(image.convert("RGB")), str(record["question"]), answer)
        except (json.JSONDecodeError, KeyError, TypeError, OSError, UnidentifiedImageError) as error:
            wanted = '"question": text, "answer": text' if with_answers else '"question": text'
            raise AegisError(
                f'{index} line {number} is not usable ({error}): it must be {{"image": a picture file beside it, '
                f"{wanted}}}."
            ) from error
