"""Samples drawn from records as readers give them; which benchmarks there are is `aegis_eval.questions.public`'s."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from aegis_eval.questions.readers import Picture, Record
from aegis_eval.questions.sample import Drawn, Sample
from aegis_policy.support.errors import AegisError

Metric = Callable[[str, Sequence[str]], float]
"""The score from 0 to 1 of an answer, given what is right."""
Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PublicSample:
    """A `Sample` of a public benchmark, or of one's own questions.

    Attributes:
        answers: what counts as right, in the data's own wording: what people said, or the one answer.
        index: among all questions of the source.
        metric: from an answer and `answers` to a score from 0 to 1.
    """

    question: str
    answers: tuple[str, ...]
    type: str
    id: str
    scene: str
    index: int
    metric: Metric = field(repr=False)
    picture: Picture = field(repr=False)

    @property
    def answer(self) -> str:
        """What most people said, ties going to the first of them."""
        return Counter(self.answers).most_common(1)[0][0]

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3), read anew.

        Raises:
            AegisError: it is missing, or no picture.
        """
        try:
            opened = Image.open(self.picture) if isinstance(self.picture, Path) else self.picture()
            with opened as image:
                return np.array(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise AegisError(
                f"The image of {self.id} cannot be read ({error}): complete the images."
            ) from error

    def score(self, given: str) -> float:
        """How right an answer is, from 0 to 1."""
        return self.metric(given, self.answers)


class ReadBenchmark(ABC):
    """A `Benchmark` whose questions are read; subclasses say from where, and what is right."""

    name: str
    lmms_eval_task: str
    takes_place = True

    @property
    @abstractmethod
    def reported(self) -> str: ...

    @abstractmethod
    def records(self, place: str | None, split: str) -> tuple[Iterator[Record], Metric]:
        """All questions of a split, and their metric."""

    def draw(
        self, place: str | None, split: str, count: int, seed: int, cache_dir: Path | None = None
    ) -> Drawn:
        """`count` questions drawn at random, or all there are, in the order of their source."""
        found, metric = self._read(place, split)
        if count < len(found):
            chosen = sorted(np.random.default_rng(seed).choice(len(found), count, replace=False).tolist())
        else:
            chosen = list(range(len(found)))
        _require_images(found[index] for index in chosen)
        times = Counter(each.id for each in found)

        def sample(index: int) -> PublicSample:
            record = found[index]
            own = record.id if times[record.id] == 1 else f"{record.id}-{index}"
            return PublicSample(
                record.question,
                record.answers,
                record.type,
                f"{self.name}/{split}/{own}",
                record.image,
                index,
                metric,
                record.picture,
            )

        return Drawn([sample(index) for index in chosen], len(found))

    def training(self, scenes: int, cache_dir: Path | None) -> Sequence[Sample]:
        """Nothing: no guesser is compared with."""
        return ()

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Figures:
        """None besides accuracy."""
        return {}

    def _read(self, place: str | None, split: str) -> tuple[list[Record], Metric]:
        records, metric = self.records(place, split)
        try:
            found = list(records)
            if empty := [each.id for each in found if not each.answers]:
                raise ValueError(f"question {empty[0]} has no answer")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise AegisError(
                f"{place or self.name} does not hold what {self.name} holds ({type(error).__name__}: {error}): take "
                "the official files as they are."
            ) from error
        if not found:
            raise AegisError(f"{place or self.name} holds no question of split {split}: name another.")
        return found, metric


def _require_images(records: Iterable[Record]) -> None:
    files = {each.picture for each in records if isinstance(each.picture, Path)}
    if missing := sorted(str(file) for file in files if not file.is_file()):
        raise AegisError(
            f"{len(missing)} of {len(files)} images are missing, {missing[0]} first: complete them."
        )
