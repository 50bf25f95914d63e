"""Questions, mostly about images, by name: a source that an installed package offers, or one's own.

`replay` trains on them, the probe asks them, `aegis-anchor` runs the pretrained model over them. A package offers a
source as an entry point of the group `aegis_policy.vqa`: a function `(source, split, count, seed) -> iterable of
VQAExample`, `source` being NAME or NAME:PLACE. What has no such name is the place of one's own questions, which the
source `custom` reads.
"""

import re
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.sources import offered, parse_source

INDEX_FILE = "questions.jsonl"
ANSWER_TOKENS, SENTENCE_TOKENS = 8, 24
"""Longest answer to a question about a picture, and without one, where models answer in whole sentences."""
_OWN = "custom"


class VQAExample:
    """A question about one image, or none, and, where known, the answer.

    Args:
        image: (H, W, 3) uint8, or what reads it anew whenever it is looked at; None for a question about none.
        question: text.
        answer: the right one, or that most people gave.
        rule: from a given answer to how right it is, from 0 to 1; exact match if left open.
        origin: where its source has it, for errors.
        seen: what tells the image from others, where it was looked at before.
    """

    def __init__(
        self,
        image: NDArray[np.uint8] | Callable[[], NDArray[np.uint8]] | None,
        question: str,
        answer: str | None = None,
        *,
        rule: Callable[[str], float] | None = None,
        origin: str | None = None,
        seen: str | None = None,
    ) -> None:
        self._image = image
        self.question = question
        self.answer = answer
        self._rule = rule
        self.origin = origin
        self.seen = seen

    @property
    def image(self) -> NDArray[np.uint8] | None:
        """(H, W, 3) uint8, or None."""
        return self._image() if callable(self._image) else self._image

    def score(self, given: str) -> float:
        """How right an answer is, from 0 to 1, as the benchmark's authors score it."""
        return self._rule(given) if self._rule is not None else float(exact_match(given, str(self.answer)))


class NoQuestionsError(AegisError):
    """A place holds no questions in any form: why the last one tried cannot be read."""

    def __init__(self, place: str, reason: str) -> None:
        self.what = (
            f'a folder with a {INDEX_FILE} (lines like {{"image": "0.png", "question": "what is this?", "answer": '
            f'"a cube"}}) nor a data set with such columns that the datasets library reads ({reason})'
        )
        super().__init__(f"{place} is neither {self.what}: name one.")


def load_vqa(
    source: str,
    flag: str,
    *,
    split: str = "train",
    count: int,
    seed: int = 0,
    with_answers: bool = False,
    refuses: Callable[[str], str | None] | None = None,
) -> list[VQAExample]:
    """At most `count` examples of a source, drawn at random where it holds more, all of them tried.

    Args:
        source: the name of an offered source, with `:` and the place of its files if it takes one; or the place of
            one's own questions (`aegis_eval.questions.own`).
        flag: how errors call what named the source.
        split: of the source.
        count: at most so many.
        seed: of the draw.
        with_answers: refuse an example without an answer.
        refuses: says of a text why the model cannot read it, as the end of a sentence, or None.

    Raises:
        AegisError: there is no such source, it is empty, or a line of it cannot be used.
    """
    if not source.strip():
        raise AegisError(f"{flag} is empty: name where its questions come from.")
    sources = offered()
    name, place = parse_source(source, sources)
    asked = f"{name or _OWN}:{place}" if place else str(name)
    named = f"{flag}={source}"
    try:
        found = list(islice(sources[name or _OWN].load()(asked, split, count, seed), count))
        _check(found, with_answers, refuses)
    except NoQuestionsError as error:
        raise AegisError(
            f"{named} is neither one of {', '.join(sources)} (a public benchmark with the place of its files, as "
            f"vqav2:FOLDER) nor {error.what}: name one."
        ) from error
    except AegisError as error:
        raise AegisError(f"{named}: {error}") from error
    return found


def _check(
    examples: Sequence[VQAExample], with_answers: bool, refuses: Callable[[str], str | None] | None
) -> None:
    if not examples:
        raise AegisError("it holds no example: name another source.")
    for number, example in enumerate(examples, start=1):
        origin = example.origin or f"example {number}"
        if with_answers and example.answer is None:
            raise AegisError(f"{origin} has no answer, and answers are needed.")
        for what, text in (("question", example.question), ("answer", example.answer)):
            if refuses is not None and text and (reason := refuses(text)) is not None:
                raise AegisError(f"The {what} of {origin} {reason}.")


def normalise_answer(text: str) -> str:
    """Lower case, punctuation removed, white space collapsed."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def exact_match(prediction: str, answer: str) -> bool:
    """Whether both are the same after `normalise_answer`."""
    return normalise_answer(prediction) == normalise_answer(answer)
