"""Benchmarks of questions about rendered tabletops: the same samples for the same (name, split, seed) everywhere.

Their images are rendered on first use and cached outside the repository. What is asked about a scene is
`aegis_eval.questions.templated`'s business.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_envs.tabletop.sim import TabletopSim
from aegis_eval.questions.images import QUESTION_SPLITS, SceneImage
from aegis_eval.questions.sample import Drawn, Sample
from aegis_eval.questions.store import SOURCES, default_cache_dir, scene_images
from aegis_eval.questions.templated import COMPOSED_TYPES, TYPES, ask
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import VQAExample, exact_match

_QUESTION_STREAM = 7919
"""Keeps the generator of the questions apart from the one that drew the scene."""
_FEW = 100


@dataclass(frozen=True)
class TabletopSample:
    """A `Sample` about a rendered scene, which has one right answer."""

    image: NDArray[np.uint8]
    question: str
    answer: str
    type: str
    id: str
    scene: int
    index: int
    chance: None = None

    @property
    def origin(self) -> str:
        """Its id, which says all that it is made from."""
        return self.id

    def score(self, given: str) -> float:
        """1 for the answer, but for case, punctuation and blanks; else 0."""
        return float(exact_match(given, self.answer))


@dataclass(frozen=True)
class TabletopBenchmark:
    """A `Benchmark` whose images are rendered.

    Attributes:
        source: which of `store.SOURCES` makes its images.
        types: of `templated.MAKERS`, asked about each.
        guesser: the benchmark whose training questions a blind guesser knows.
    """

    name: str
    source: str
    types: tuple[str, ...]
    guesser: str
    reported: str = "test"
    takes_place: bool = False
    lmms_eval_task: str | None = None

    def find_split(self, place: str | None, split: str) -> str:
        """The same."""
        return split

    def draw(self, place: str | None, split: str, count: int, seed: int, cache_dir: Path | None) -> Drawn:
        """`load_samples`; there is no place to read from."""
        samples = load_samples(self.name, split, count, seed, cache_dir=cache_dir)
        return Drawn(samples, len(samples))

    def training(self, scenes: int, cache_dir: Path | None) -> Sequence[Sample]:
        """The training questions of `guesser`."""
        return load_benchmark(self.guesser, "train", scenes, cache_dir=cache_dir)

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """None besides accuracy."""
        return {}


TABLETOP = {
    each.name: each
    for each in (
        TabletopBenchmark("tabletop", "scenes", TYPES, guesser="tabletop"),
        TabletopBenchmark("tabletop_composed", "scenes", COMPOSED_TYPES, guesser="tabletop_composed"),
        TabletopBenchmark("tabletop_robot", "robot", TYPES, guesser="tabletop"),
    )
}
"""`tabletop`: what the embedded VLM was trained on. `tabletop_composed`: the same scenes, questions that join two
attributes and a relation, as no training question does. `tabletop_robot`: the training's kind of questions about
frames of robot episodes."""


def load_benchmark(
    name: str = "tabletop",
    split: str = "test",
    n_scenes: int = 300,
    seed: int = 0,
    *,
    cache_dir: Path | None = None,
    num_workers: int | None = None,
) -> list[TabletopSample]:
    """The questions about the first `n_scenes` scenes of a split: at most one of each type a scene.

    One a type, so that scenes in which little can be asked do not tilt the balance of the answers.

    Args:
        name: one of `TABLETOP`.
        split: "train", "val" or "test"; no scene is in two of them.
        n_scenes: number of images.
        seed: another seed gives other scenes of the same split.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
        num_workers: rendering processes, by default one a core.

    Raises:
        AegisError: a benchmark or split that does not exist, or no scenes asked for.
    """
    benchmark = _known(name)
    if split not in QUESTION_SPLITS:
        raise AegisError(
            f"--split={split} does not exist in {name}: choose from {', '.join(QUESTION_SPLITS)}."
        )
    if n_scenes < 1:
        raise AegisError(
            f"--benchmark={name} needs at least one scene, got {n_scenes}: ask for more samples."
        )
    samples: list[TabletopSample] = []
    for scene, photo in enumerate(_photos(benchmark.source, split, n_scenes, seed, cache_dir, num_workers)):
        rng = np.random.default_rng([_QUESTION_STREAM, QUESTION_SPLITS[split], seed, scene])
        for kind in benchmark.types:
            for question in ask(photo.scene, rng, types=[kind], n=1, place=photo.place):
                identity = f"{name}/{split}/{seed}/{scene}/{kind}"
                samples.append(
                    TabletopSample(
                        photo.image,
                        question.text,
                        question.answer,
                        question.type,
                        identity,
                        scene,
                        index=len(samples),
                    )
                )
    return samples


def _known(name: str) -> TabletopBenchmark:
    if name not in TABLETOP:
        raise AegisError(f"--benchmark={name} is not known: choose from {', '.join(TABLETOP)}.")
    return TABLETOP[name]


def _photos(
    source: str, split: str, count: int, seed: int, cache_dir: Path | None, num_workers: int | None
) -> Iterator[SceneImage]:
    if count > _FEW:
        yield from scene_images(
            split,
            count,
            seed,
            cache_dir or default_cache_dir(),
            source=source,
            num_workers=num_workers,
        )
        return
    # Rendered here and now: quicker than starting processes.
    with closing(TabletopSim()) as sim:
        for index in range(count):
            yield SOURCES[source].render(sim, split, seed, index)


def load_samples(
    name: str, split: str, count: int, seed: int = 0, *, cache_dir: Path | None = None
) -> list[TabletopSample]:
    """Exactly `count` samples: whole scenes until there are enough, the last one cut.

    Raises:
        AegisError: as `load_benchmark`, or `count` is not positive.
    """
    if count < 1:
        raise AegisError(f"--samples={count} asks for nothing: give a positive number.")
    scenes = -(-count // max(1, len(_known(name).types) - 2))
    while len(samples := load_benchmark(name, split, scenes, seed, cache_dir=cache_dir)) < count:
        scenes *= 2
    return samples[:count]


def vqa_examples(name: str, split: str, count: int, seed: int) -> Iterator[VQAExample]:
    """The samples of a benchmark as `aegis_policy.vqa.examples` wants them of a source.

    Raises:
        AegisError: as `load_samples`, or a place was given, which rendered scenes do not have.
    """
    if ":" in name:
        raise AegisError(f"{name}: {name.partition(':')[0]} is rendered and takes no place: leave it out.")
    for sample in load_samples(name, split, count, seed):
        yield VQAExample(sample.image, sample.question, sample.answer)


def sample_images(ids: Iterable[str]) -> dict[str, NDArray[np.uint8]]:
    """Images of samples by id, rendered again.

    Raises:
        AegisError: an id that no benchmark here gives out.
    """
    images = {}
    with closing(TabletopSim()) as sim:
        for identity in ids:
            name, *rest = identity.split("/")
            if name not in TABLETOP or len(rest) != 4 or rest[0] not in QUESTION_SPLITS:
                raise AegisError(f"{identity} is not the id of a sample of {', '.join(TABLETOP)}.")
            render = SOURCES[TABLETOP[name].source].render
            images[identity] = render(sim, rest[0], int(rest[1]), int(rest[2])).image
    return images
