"""One question, mostly about an image, as every benchmark gives it: what is asked, and how right an answer is."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Sample(Protocol):
    """A question with its image (H, W, 3) uint8, several of them, or None; samples with the same `scene` share it.

    Attributes:
        answer: the one that is right, or that most people gave.
        type: what the benchmark sorts its questions by.
        index: place among all questions of its split.
        origin: where its source has it, for errors.
        chance: how right a guess among its options is, from 0 to 1; None of a question without options.
    """

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | None: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def scene(self) -> int | str: ...
    @property
    def index(self) -> int: ...
    @property
    def origin(self) -> str: ...
    @property
    def chance(self) -> float | None: ...
    def score(self, given: str, /) -> float:
        """How right an answer is, from 0 to 1."""


class Drawn(NamedTuple):
    """Samples drawn from a split, and how many it has; as many as were drawn where there is no end of them."""

    samples: Sequence[Sample]
    total: int


class Benchmark(Protocol):
    """Questions under a name, wherever they come from.

    Attributes:
        name: what `--benchmark` calls it.
        reported: the split whose accuracy is reported.
        takes_place: whether its files lie somewhere that `--vqa.path` can name.
        lmms_eval_task: what lmms-eval calls it; None if its results are not laid out as lmms-eval's.
    """

    @property
    def name(self) -> str: ...
    @property
    def reported(self) -> str: ...
    @property
    def takes_place(self) -> bool: ...
    @property
    def lmms_eval_task(self) -> str | None: ...

    def find_split(self, place: str | None, split: str) -> str:
        """The split that is read when this one is asked for: mostly the same.

        Raises:
            AegisError: there is none that could be meant.
        """

    def draw(self, place: str | None, split: str, count: int, seed: int, cache_dir: Path | None) -> Drawn:
        """At most `count` questions of a split, the same ones for the same seed.

        Raises:
            AegisError: they are not there, or not as they should be.
        """

    def training(self, scenes: int, cache_dir: Path | None) -> Sequence[Sample]:
        """Questions about that many training scenes, which a blind guesser knows; none of a public benchmark."""

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """What it reports besides accuracy, by kind of question; mostly nothing."""


def fingerprint(samples: Iterable[Sample]) -> str:
    """A short hash of which questions were asked and what counts as right."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.id}\t{sample.question}\t{sample.answer}\n".encode())
    return digest.hexdigest()[:16]
