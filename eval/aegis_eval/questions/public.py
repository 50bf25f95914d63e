"""Public VQA benchmarks by name, scored as their authors score them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from aegis_eval.questions.official_scores import canonical, matches, says, vqa_accuracy, yes_no_scores
from aegis_eval.questions.readers import (
    Picture,
    Reader,
    Record,
    read_coco,
    read_data_set,
    read_gqa,
    read_pope,
    read_textvqa,
)
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import VQAExample

Metric = Callable[[str, Sequence[str]], float]
CUSTOM = "custom"
_USUAL = {"val": "validation"}
"""Split -> what `datasets` calls it."""
_PEOPLE = 10
"""Answers to a question in the official data of VQAv2, OK-VQA and TextVQA."""


@dataclass(frozen=True)
class PublicSample:
    """One question about one image; samples with the same `scene` share their image.

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


@dataclass(frozen=True)
class PublicBenchmark:
    """One benchmark.

    Attributes:
        task: what lmms-eval (0.7.3) calls it.
        metric: from an answer and what is right to a score from 0 to 1.
        files: official ones, `{}` being a split's name in them.
        splits: those with answers, by that name; the first is the one that is reported.
        read: the files.
        data_set: the id under which lmms-eval (0.7.3) reads the reported split, its configuration (`{}` being the
            split) and what that split is called there.
    """

    task: str
    metric: Metric
    files: tuple[str, ...]
    splits: Mapping[str, str]
    read: Reader
    data_set: tuple[str, str | None, str]


def _vqav2_accuracy(given: str, people: Sequence[str]) -> float:
    return vqa_accuracy(given, people, words_first=False)


def _exact(given: str, answers: Sequence[str]) -> float:
    return float(matches(given, answers[0]))


def _yes_or_no(given: str, answers: Sequence[str]) -> float:
    return float(says(given, answers[0]))


def _agreement(given: str, answers: Sequence[str]) -> float:
    """VQA accuracy where as many people answered as it was made for, otherwise whether one of the answers was given."""
    if len(answers) >= _PEOPLE:
        return vqa_accuracy(given, answers)
    return float(canonical(given) in {canonical(each) for each in answers})


_COCO = {"val": "val2014", "train": "train2014"}
PUBLIC = {
    "vqav2": PublicBenchmark(
        "vqav2_val",
        _vqav2_accuracy,
        ("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"),
        _COCO,
        read_coco,
        ("lmms-lab-encoder/VQAv2", None, "validation"),
    ),
    "okvqa": PublicBenchmark(
        "ok_vqa_val2014",
        vqa_accuracy,
        ("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"),
        _COCO,
        read_coco,
        ("lmms-lab-encoder/OK-VQA", None, "val2014"),
    ),
    "textvqa": PublicBenchmark(
        "textvqa_val",
        vqa_accuracy,
        ("TextVQA_0.5.1_{}.json",),
        {"val": "val", "train": "train"},
        read_textvqa,
        ("lmms-lab-encoder/textvqa", None, "validation"),
    ),
    "gqa": PublicBenchmark(
        "gqa",
        _exact,
        ("{}_balanced_questions.json",),
        {"testdev": "testdev", "val": "val", "train": "train"},
        read_gqa,
        ("lmms-lab-encoder/GQA", "{}_balanced_instructions", "testdev"),
    ),
    "pope": PublicBenchmark(
        "pope",
        _yes_or_no,
        ("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json"),
        {"test": "val2014"},
        read_pope,
        ("lmms-lab-encoder/POPE", None, "test"),
    ),
}


def reported_split(name: str) -> str:
    """The split of a public benchmark whose accuracy papers report; `test` of one's own questions."""
    return next(iter(PUBLIC[name].splits)) if name in PUBLIC else "test"


def load_public(
    name: str, path: str | None, split: str | None, count: int, seed: int = 0
) -> tuple[list[PublicSample], int]:
    """Questions of a public benchmark, or of one's own, in the order of their source.

    Args:
        name: one of `PUBLIC`, or `custom`.
        path: the folder with the official files and images, or a data set (`question_sources.read_data_set`); for one
            of `PUBLIC` by default the data set that lmms-eval reads.
        split: by default the one that is reported.
        count: so many drawn at random, or all there are.
        seed: of the draw.

    Returns:
        Them, and how many there are in all.

    Raises:
        AegisError: the questions are not there, or not as they should be.
    """
    split = split or reported_split(name)
    records, metric = _records(name, path, split)
    try:
        found = list(records)
        if empty := [each.id for each in found if not each.answers]:
            raise ValueError(f"question {empty[0]} has no answer")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise AegisError(
            f"{path or name} does not hold what {name} holds ({type(error).__name__}: {error}): take the official "
            "files as they are."
        ) from error
    if not found:
        raise AegisError(f"{path or name} holds no question of split {split}: name another.")
    times = Counter(each.id for each in found)
    names = [each.id if times[each.id] == 1 else f"{each.id}-{row}" for row, each in enumerate(found)]
    if count < len(found):
        chosen = sorted(np.random.default_rng(seed).choice(len(found), count, replace=False).tolist())
    else:
        chosen = list(range(len(found)))
    files = {picture for index in chosen if isinstance(picture := found[index].picture, Path)}
    if missing := sorted(str(file) for file in files if not file.is_file()):
        raise AegisError(
            f"{len(missing)} of {len(files)} images are missing, {missing[0]} first: complete them."
        )
    samples = [
        PublicSample(
            found[index].question,
            found[index].answers,
            found[index].type,
            f"{name}/{split}/{names[index]}",
            found[index].image,
            index,
            metric,
            found[index].picture,
        )
        for index in chosen
    ]
    return samples, len(found)


def public_examples(source: str, split: str, count: int, seed: int) -> Iterator[VQAExample]:
    """The questions of `NAME` or `NAME:PATH` as `aegis_policy.vqa.examples` wants them of a source.

    The answer is what most people said. A split that the benchmark does not have is refused.
    """
    name, _, path = source.partition(":")
    samples, _ = load_public(name, path or None, split, count, seed)
    for sample in samples:
        yield VQAExample(sample.image, sample.question, sample.answer)


def yes_no_figures(samples: Sequence[PublicSample], given: Sequence[str]) -> dict[str, dict[str, float]]:
    """What POPE reports: accuracy, precision, recall, F1 and share of yes, over all questions and by type."""
    figures = {}
    for kind in ("all", *dict.fromkeys(sample.type for sample in samples)):
        pairs = [
            (answer, sample.answer)
            for answer, sample in zip(given, samples, strict=True)
            if kind in ("all", sample.type)
        ]
        figures[kind] = asdict(yes_no_scores(*zip(*pairs, strict=True)))
    return figures


def _records(name: str, path: str | None, split: str) -> tuple[Iterator[Record], Metric]:
    if name == CUSTOM:
        if path is None:
            raise AegisError(
                "custom needs a place, a folder or an id that datasets.load_dataset reads: --vqa.path=PLACE of "
                "aegis-vqa, custom:PLACE elsewhere."
            )
        return read_data_set(path, [split, _USUAL.get(split, split)]), _agreement
    benchmark = PUBLIC[name]
    if split not in benchmark.splits:
        raise AegisError(
            f"{name} has no answers for a split {split}: choose from {', '.join(benchmark.splits)}."
        )
    folder = Path(path or "")
    files = [folder / each.format(benchmark.splits[split]) for each in benchmark.files]
    missing = [each.name for each in files if not each.is_file()]
    if not missing:
        return benchmark.read(folder, files, benchmark.splits[split]), benchmark.metric
    if len(missing) < len(files):
        raise AegisError(f"{path}: {', '.join(missing)} is missing: put it beside the other files.")
    data_set, config, reported = benchmark.data_set
    splits = [*([reported] if split == reported_split(name) else []), split, _USUAL.get(split, split)]
    try:
        rows = read_data_set(path or data_set, splits, config and config.format(split))
    except AegisError as error:
        raise AegisError(f"{error} The official files of {name} would be {', '.join(missing)}.") from error
    return rows, benchmark.metric
