"""What a model can answer and how much of it was kept: accuracy per question type, paired with a reference.

Takes answers, gives numbers; where the answers come from is `aegis_eval.answers.asking`'s business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_eval.answers.blind import BlindBaseline
from aegis_eval.questions.sample import Sample
from aegis_eval.statistics.intervals import (
    Interval,
    PairedComparison,
    accuracy_interval,
    compare_paired,
)
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import p_value


@dataclass(frozen=True)
class Reference:
    """The pretrained model on the same samples; `retained` is the ratio of accuracies, if any."""

    accuracy: float
    ci: Interval
    paired: PairedComparison
    retained: float | None


@dataclass(frozen=True)
class Score:
    """Accuracy of `n` answers with its interval, the blind baseline's if there is one, and the reference's.

    Attributes:
        chance: what guesses among the options would score, a question without options counting 0; None where no
            question has any.
    """

    accuracy: float
    n: int
    ci: Interval
    blind: float | None
    chance: float | None
    pretrained: Reference | None = None


@dataclass(frozen=True)
class Scores:
    """A `Score` over everything and one a question type, in order of first appearance.

    Attributes:
        answers: (N,) how right each answer is, from 0 to 1.
        pretrained_answers: (N,) the same of the reference, if there is one.
    """

    overall: Score
    per_type: Mapping[str, Score]
    answers: NDArray[np.float64]
    pretrained_answers: NDArray[np.float64] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: the overall score's keys, and `per_type`."""
        per_type = {kind: asdict(score) for kind, score in self.per_type.items()}
        return {**asdict(self.overall), "per_type": per_type}


def score_answers(
    samples: Sequence[Sample],
    answers: Sequence[str],
    blind: BlindBaseline | None,
    pretrained_answers: Sequence[str] | None = None,
) -> Scores:
    """Score `answers` to `samples`, each once, overall and per type.

    Raises:
        ValueError: no samples, or not one answer a sample.
    """
    if not samples or len(samples) != len(answers):
        raise ValueError(f"{len(samples)} samples and {len(answers)} answers: need one answer a sample")
    correct = _scored(samples, answers)
    reference = None if pretrained_answers is None else _scored(samples, pretrained_answers)
    guessed = None
    if blind is not None:
        guessed = _scored(samples, [blind.predict(sample.question, sample.type) for sample in samples])
    scenes = np.array([sample.scene for sample in samples])
    kinds = np.array([sample.type for sample in samples])
    chances = [sample.chance for sample in samples]
    chance = None if set(chances) == {None} else np.array([each or 0.0 for each in chances])

    def score(chosen: NDArray[np.bool_]) -> Score:
        return Score(
            accuracy=float(correct[chosen].mean()),
            n=int(chosen.sum()),
            ci=accuracy_interval(correct[chosen], scenes[chosen].tolist()),
            blind=None if guessed is None else float(guessed[chosen].mean()),
            chance=None if chance is None else float(chance[chosen].mean()),
            pretrained=None
            if reference is None
            else _refer(correct[chosen], reference[chosen], scenes[chosen]),
        )

    per_type = {kind: score(kinds == kind) for kind in dict.fromkeys(kinds.tolist())}
    return Scores(score(np.ones(len(samples), dtype=bool)), per_type, correct, reference)


def format_table(scores: Scores) -> str:
    """The scores as fixed-width text, one line a question type and one over all."""
    header = ["type", "n", "accuracy %", "95 % interval"]
    if scores.overall.blind is not None:
        header += ["blind %"]
    if scores.overall.chance is not None:
        header += ["chance %"]
    if scores.overall.pretrained is not None:
        header += ["pretrained %", "change", "95 % of change", "p of change"]
    rows = [_table_row(kind, score) for kind, score in scores.per_type.items()]
    return Table(header, [*rows, _table_row("all", scores.overall)], total=True).text()


def _table_row(kind: str, score: Score) -> list[str]:
    row = [kind, str(score.n), f"{100 * score.accuracy:.1f}", _percent(score.ci)]
    if score.blind is not None:
        row += [f"{100 * score.blind:.1f}"]
    if score.chance is not None:
        row += [f"{100 * score.chance:.1f}"]
    if score.pretrained is not None:
        paired = score.pretrained.paired
        row += [
            f"{100 * score.pretrained.accuracy:.1f}",
            f"{100 * paired.difference:+.1f}",
            _percent(paired.ci, signed=True),
            p_value(paired.p_value),
        ]
    return row


def _percent(interval: tuple[float, float], *, signed: bool = False) -> str:
    low, high = (f"{100 * value:{'+' if signed else ''}.1f}" for value in interval)
    return f"{low} to {high}"


def _scored(samples: Sequence[Sample], answers: Sequence[str]) -> NDArray[np.float64]:
    return np.array(
        [sample.score(given) for given, sample in zip(answers, samples, strict=True)], dtype=float
    )


def _refer(correct: NDArray[np.float64], reference: NDArray[np.float64], scenes: NDArray[Any]) -> Reference:
    return Reference(
        accuracy=float(reference.mean()),
        ci=accuracy_interval(correct=reference, groups=scenes.tolist()),
        paired=compare_paired(correct, reference, scenes.tolist()),
        retained=float(correct.sum() / reference.sum()) if reference.any() else None,
    )
