"""Samples drawn from records as readers give them; which benchmarks there are is `aegis_eval.questions.public`'s."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_eval.questions.pictures import decode, require_files
from aegis_eval.questions.records import Metric, Picture, Record
from aegis_eval.questions.sample import Drawn, Sample
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import VQAExample

Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PublicSample:
    """A `Sample` of a public benchmark, or of one's own questions.

    Attributes:
        answers: what counts as right, in the data's own wording: what people said, or the one answer.
        index: among all questions of the source.
        metric: from an answer and `answers` to a score from 0 to 1.
        origin: where the source has it.
        chance: how right a guess among its options is; None where it has none.
        further: pictures beside the first.
    """

    question: str
    answers: tuple[str, ...]
    type: str
    id: str
    scene: str
    index: int
    metric: Metric = field(repr=False)
    picture: Picture | None = field(repr=False)
    origin: str = ""
    chance: float | None = None
    further: tuple[Picture, ...] = field(default=(), repr=False)

    @property
    def answer(self) -> str:
        """What most people said, ties going to the first of them; empty if nobody said anything."""
        said = [each for each in self.answers if each.strip()]
        return Counter(said).most_common(1)[0][0] if said else ""

    @property
    def image(self) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | None:
        """`read_image`, where there is a picture; where there are several, all."""
        if self.further:
            return self.read_images()
        return None if self.picture is None else self.read_image()

    def read_image(self) -> NDArray[np.uint8]:
        """The first picture (H, W, 3), read anew.

        Raises:
            AegisError: it is missing, or no picture.
        """
        return self.read_images()[0]

    def read_images(self) -> list[NDArray[np.uint8]]:
        """All of them, each (H, W, 3), read anew.

        Raises:
            AegisError: one is missing, or no picture.
        """
        assert self.picture is not None
        try:
            return [decode(each) for each in (self.picture, *self.further)]
        except ValueError as error:
            raise AegisError(
                f"The image of {self.id} cannot be read ({error}), which {self.origin} asks about: replace the image."
            ) from error

    def score(self, given: str) -> float:
        """How right an answer is, from 0 to 1."""
        return self.metric(given, self.answers)


def require_decoded(samples: Iterable[Sample]) -> list[str]:
    """Decode the pictures of samples that are read from files once, so that none ends a pass that has begun.

    Returns:
        What tells the pictures of each of them from others, wherever they lie and however they are compressed; nothing
        for samples that are rendered.

    Raises:
        AegisError: with the first that cannot be, and how many others.
    """
    read = [each for each in samples if isinstance(each, PublicSample) and each.picture is not None]
    pictures = {(each.picture, each.further): each for each in read}
    seen, bad = {}, []
    for which, sample in tqdm(pictures.items(), desc="pictures", unit="picture", delay=2, leave=False):
        digest = hashlib.sha256()
        try:
            for image in sample.read_images():
                digest.update(str(image.shape).encode() + image.tobytes())
            seen[which] = digest.hexdigest()
        except AegisError as error:
            bad.append(str(error))
    if bad:
        raise AegisError(
            bad[0] if len(bad) == 1 else f"{bad[0]} {len(bad) - 1} others cannot be read either."
        )
    return [seen[each.picture, each.further] for each in read]


def as_examples(samples: Sequence[PublicSample]) -> Iterator[VQAExample]:
    """The same as `aegis_policy.vqa.examples` wants them, their pictures all tried before the first is given out."""
    for sample, seen in zip(samples, require_decoded(samples), strict=True):
        yield VQAExample(
            sample.read_image,
            sample.question,
            sample.answer or None,
            rule=sample.score,
            origin=sample.origin,
            seen=seen,
        )


class ReadBenchmark(ABC):
    """A `Benchmark` whose questions are read; subclasses say from where, and what is right."""

    name: str
    lmms_eval_task: str | None
    takes_place = True

    @property
    @abstractmethod
    def reported(self) -> str: ...

    @abstractmethod
    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """All questions of a split, which can be gone through twice, and their metric."""

    def find_split(self, place: str | None, split: str) -> str:
        """The split that is read when this one is asked for."""
        return split

    def draw(
        self, place: str | None, split: str, count: int, seed: int, cache_dir: Path | None = None
    ) -> Drawn:
        """`count` questions drawn at random, or all there are, in the order of their source."""
        return Drawn(*self.drawn(place, split, count, seed))

    def drawn(
        self, place: str | None, split: str, count: int, seed: int, *, answered: bool = True
    ) -> tuple[list[PublicSample], int]:
        """The same; `answered` says whether a question without an answer is refused."""
        split = self.find_split(place, split)
        records, metric = self.records(place, split, answered=answered)
        total = sum(1 for _ in records)
        if not total:
            raise AegisError(f"{place or self.name} holds no question of split {split}: name another.")
        chosen = (
            set(np.random.default_rng(seed).choice(total, count, replace=False).tolist())
            if count < total
            else range(total)
        )
        found = [(index, record) for index, record in enumerate(records) if index in chosen]
        require_files((record.picture, record.origin) for _, record in found)
        names = _names([(record.id, index) for index, record in found])
        samples = [
            PublicSample(
                question=record.question,
                answers=record.answers,
                type=record.type,
                id=f"{self.name}/{split}/{name}",
                scene=record.image,
                index=index,
                metric=record.metric or metric,
                picture=record.picture,
                origin=record.origin,
                chance=record.chance,
                further=record.further,
            )
            for name, (index, record) in zip(names, found, strict=True)
        ]
        return samples, total

    def training(self, scenes: int, cache_dir: Path | None) -> Sequence[Sample]:
        """Nothing: no guesser is compared with."""
        return ()

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Figures:
        """None besides accuracy."""
        return {}


def _names(ids: Sequence[tuple[str, int]]) -> list[str]:
    """Different names for questions by their ids, those that are not different having their number behind them."""
    times = Counter(own for own, _ in ids)
    names = [own if times[own] == 1 else f"{own}-{index}" for own, index in ids]
    return names if len(set(names)) == len(names) else [f"{own}-{index}" for own, index in ids]
