"""Public VQA benchmarks by name, and one's own questions, scored as their authors score them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from aegis_eval.questions.from_records import Figures, ReadBenchmark, as_examples
from aegis_eval.questions.official_scores import canonical, matches, says, vqa_accuracy, yes_no_scores
from aegis_eval.questions.own import find_split, read_own
from aegis_eval.questions.readers import Reader, read_coco, read_gqa, read_pope, read_textvqa
from aegis_eval.questions.records import Metric, Record, Reread
from aegis_eval.questions.sample import Sample
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import is_file
from aegis_policy.vqa.examples import VQAExample
from aegis_policy.vqa.sources import expanded

_USUAL = {"val": "validation"}
"""Split -> what `datasets` calls it."""
_PEOPLE = 10
"""Answers to a question in the official data of VQAv2, OK-VQA and TextVQA."""


@dataclass(frozen=True)
class PublicBenchmark(ReadBenchmark):
    """A `Benchmark` with official files.

    Attributes:
        metric: from an answer and what is right to a score from 0 to 1.
        files: official ones, `{}` being a split's name in them.
        splits: those with answers, by that name; the first is the one that is reported.
        read: the files.
        data_set: the id under which lmms-eval (0.7.3) reads the reported split, its configuration (`{}` being the
            split) and what that split is called there.
        closed: the only right answers that there are, if they are few.
        extra: figures reported besides accuracy.
    """

    name: str
    lmms_eval_task: str
    metric: Metric
    files: tuple[str, ...]
    splits: Mapping[str, str]
    read: Reader
    data_set: tuple[str, str | None, str]
    closed: frozenset[str] | None = None
    extra: Callable[[Sequence[Sample], Sequence[str]], Figures] | None = None

    @property
    def reported(self) -> str:
        """The split whose accuracy papers report."""
        return next(iter(self.splits))

    def figures(self, samples: Sequence[Sample], given: Sequence[str]) -> Figures:
        """POPE's precision, recall and the like; of the others none."""
        return self.extra(samples, given) if self.extra is not None else {}

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions of the official files in a folder, or else of a data set."""
        if split not in self.splits:
            raise AegisError(
                f"{self.name} has no answers for a split {split}: choose from {', '.join(self.splits)}."
            )
        place = place and expanded(place)
        folder = Path(place or "")
        files = [folder / each.format(self.splits[split]) for each in self.files]
        missing = [each.name for each in files if not is_file(each)]
        if not missing:
            return list(self._allowed(self.read(folder, files, self.splits[split]))), self.metric
        if len(missing) < len(files):
            raise AegisError(f"{place}: {', '.join(missing)} is missing: put it beside the other files.")
        from aegis_eval.questions.data_sets import (
            read_data_set,  # and with it `datasets`, for those who need it
        )

        data_set, config, reported = self.data_set
        splits = [*([reported] if split == self.reported else []), split, _USUAL.get(split, split)]
        try:
            rows = read_data_set(place or data_set, splits, config and config.format(split))
        except AegisError as error:
            raise AegisError(
                f"{error} The official files of {self.name} would be {', '.join(missing)}."
            ) from error
        return Reread(lambda: self._allowed(rows)), self.metric

    def _allowed(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if self.closed is not None and {each.lower().strip() for each in record.answers} - self.closed:
                raise AegisError(
                    f"{record.origin}: its answer is {record.answers[0]}, but those of {self.name} are "
                    f"{' and '.join(sorted(self.closed))}."
                )
            yield record


@dataclass(frozen=True)
class OwnQuestions(ReadBenchmark):
    """A `Benchmark` of one's own, in any place that `aegis_eval.questions.own` reads."""

    name: str
    lmms_eval_task: str
    reported: str = "test"

    def find_split(self, place: str | None, split: str) -> str:
        """The nearest one that there is; see `own.find_split`."""
        return find_split(self._required(place), split)

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions, scored as far as people agree."""
        return read_own(self._required(place), split, answered=answered), people_agree

    def _required(self, place: str | None) -> str:
        if not place:
            raise AegisError(
                f"{self.name} needs a place, a folder or an id that datasets.load_dataset reads: --vqa.path=PLACE of "
                f"aegis-vqa, {self.name}:PLACE elsewhere."
            )
        return expanded(place)


def people_agree(given: str, answers: Sequence[str], *, words_first: bool = True) -> float:
    """VQA accuracy where as many people answered as it was made for, otherwise whether one of the answers was given."""
    if len(answers) >= _PEOPLE:
        return vqa_accuracy(given, answers, words_first=words_first)
    same = {canonical(each, words_first=words_first) for each in answers}
    return float(canonical(given, words_first=words_first) in same)


def _exact(given: str, answers: Sequence[str]) -> float:
    return float(matches(given, answers[0]))


def _yes_or_no(given: str, answers: Sequence[str]) -> float:
    return float(says(given, answers[0]))


def yes_no_figures(samples: Sequence[Sample], given: Sequence[str]) -> dict[str, dict[str, float]]:
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


_COCO = {"val": "val2014", "train": "train2014"}
PUBLIC: dict[str, PublicBenchmark | OwnQuestions] = {
    each.name: each
    for each in (
        PublicBenchmark(
            "vqav2",
            lmms_eval_task="vqav2_val",
            metric=partial(people_agree, words_first=False),
            files=("v2_OpenEnded_mscoco_{}_questions.json", "v2_mscoco_{}_annotations.json"),
            splits=_COCO,
            read=read_coco,
            data_set=("lmms-lab-encoder/VQAv2", None, "validation"),
        ),
        PublicBenchmark(
            "okvqa",
            lmms_eval_task="ok_vqa_val2014",
            metric=people_agree,
            files=("OpenEnded_mscoco_{}_questions.json", "mscoco_{}_annotations.json"),
            splits=_COCO,
            read=read_coco,
            data_set=("lmms-lab-encoder/OK-VQA", None, "val2014"),
        ),
        PublicBenchmark(
            "textvqa",
            lmms_eval_task="textvqa_val",
            metric=people_agree,
            files=("TextVQA_0.5.1_{}.json",),
            splits={"val": "val", "train": "train"},
            read=read_textvqa,
            data_set=("lmms-lab-encoder/textvqa", None, "validation"),
        ),
        PublicBenchmark(
            "gqa",
            lmms_eval_task="gqa",
            metric=_exact,
            files=("{}_balanced_questions.json",),
            splits={"testdev": "testdev", "val": "val", "train": "train"},
            read=read_gqa,
            data_set=("lmms-lab-encoder/GQA", "{}_balanced_instructions", "testdev"),
        ),
        PublicBenchmark(
            "pope",
            lmms_eval_task="pope",
            metric=_yes_or_no,
            files=("coco_pope_random.json", "coco_pope_popular.json", "coco_pope_adversarial.json"),
            splits={"test": "val2014"},
            read=read_pope,
            data_set=("lmms-lab-encoder/POPE", None, "test"),
            closed=frozenset(("yes", "no")),
            extra=yes_no_figures,
        ),
        OwnQuestions("custom", lmms_eval_task="custom"),
    )
}


def public_examples(source: str, split: str, count: int, seed: int) -> Iterable[VQAExample]:
    """The questions of `NAME` or `NAME:PATH` as `aegis_policy.vqa.examples` wants them of a source.

    All lines and pictures are tried before the first is given out. The answer is what most people said; one's own
    questions may have none. A split that the benchmark does not have is refused.
    """
    name, _, path = source.partition(":")
    benchmark = PUBLIC[name]
    own = isinstance(benchmark, OwnQuestions)
    samples, _ = benchmark.drawn(path or None, split, count, seed, answered=not own)
    return as_examples(samples)
