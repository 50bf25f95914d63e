"""What could be answered without looking: the majority answers of training questions, which a model must beat."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from aegis_eval.questions.sample import Benchmark
from aegis_policy.vqa.examples import normalise_answer

_MAX_SCENES = 800


class BlindBaseline:
    """The best answer without looking: the majority of the same text, else of the same type, in training.

    It is fitted on a training split. A text counts from `min_count` occurrences.
    """

    def __init__(self, min_count: int = 5) -> None:
        self.min_count = min_count
        self._by_text: dict[str, Counter[str]] = defaultdict(Counter)
        self._by_type: dict[str, Counter[str]] = defaultdict(Counter)

    def fit(self, questions: Iterable[tuple[str, str, str]]) -> Self:
        """Count (text, answer, type) triples."""
        for text, answer, kind in questions:
            self._by_text[normalise_answer(text)][normalise_answer(answer)] += 1
            self._by_type[kind][normalise_answer(answer)] += 1
        return self

    def predict(self, text: str, kind: str) -> str:
        """The majority answer, ties going to the alphabet's first; an empty string for a type never seen."""
        counts = self._by_text.get(normalise_answer(text), Counter())
        if counts.total() < self.min_count:
            counts = self._by_type.get(kind, Counter())
        return min(counts, key=lambda answer: (-counts[answer], answer), default="")


def blind_baseline(
    benchmark: Benchmark, scenes: int, *, cache_dir: Path | None = None
) -> BlindBaseline | None:
    """A guesser that knows a benchmark's questions about that many training scenes; None of a public one."""
    known = benchmark.training(min(scenes, _MAX_SCENES), cache_dir)
    if not known:
        return None
    return BlindBaseline().fit((sample.question, sample.answer, sample.type) for sample in known)
