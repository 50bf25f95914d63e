"""What a comparison of protections can conclude: success, retention and their differences, with intervals.

All runs meet the same initial states and the same questions, so differences are paired. Intervals resample seeds, then
episodes or scenes (`aegis_eval.resampling`); those of a single run are Wilson's. With few seeds a bootstrap over them
is too narrow rather than too wide: what lies just outside an interval is not yet a finding.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from aegis_eval.metrics import mcnemar_p
from aegis_eval.resampling import (
    Array,
    Estimate,
    Resampling,
    bits,
    change_estimate,
    estimate,
    rate_estimate,
)

ALL = "all"
REFERENCE = "none"


@dataclass(frozen=True)
class Questions:
    """What every run is asked in one benchmark: the type and scene of each question, and a `1` where the pretrained
    model is right."""

    types: list[str]
    scenes: list[int]
    pretrained: str


@dataclass(frozen=True)
class ComparedRun:
    """One training and everything that was measured of it.

    Attributes:
        protection: name of the variant.
        lr: learning rate of the backbone.
        seed: of the training.
        rollouts: split -> task -> a `1` for every episode that succeeded, in the order of the initial states.
        answers: benchmark -> a `1` for every question answered correctly.
        swaps: task -> `pairs`, `followed`, `changed` of `aegis-swap`.
        drift: mean relative drift of the activations.
        drift_per_layer: the same of every decoder layer.
        folder: name of the run's folder; protections that are the same training share one.
        curves: of the training log: name -> {"steps", "values"}.
        seconds: stage -> how long it took.
    """

    protection: str
    lr: float
    seed: int
    rollouts: dict[str, dict[str, str]]
    answers: dict[str, str]
    swaps: dict[str, dict[str, int]]
    drift: float
    drift_per_layer: list[float]
    folder: str
    curves: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def outcomes(self, split: str, task: str) -> str:
        """Of one task, or of all one after the other."""
        by_task = self.rollouts[split]
        return "".join(by_task.values()) if task == ALL else by_task[task]


@dataclass(frozen=True)
class TypeResult:
    """Questions of one type: accuracy, the change against the pretrained model, and whether it is more than chance.

    `p_value` is McNemar's, generalised to scenes with several changes, over the answers of all seeds: of these very
    trainings, not of others, and not corrected for how many types and protections are looked at.
    """

    accuracy: Estimate
    pretrained: float
    change: Estimate
    p_value: float
    n: int


@dataclass(frozen=True)
class ProtectionResult:
    """One protection over its seeds; differences are to `none` on the same initial states, None for itself.

    `success` and `against_none` are split -> task (or `all`) -> rate, `answers` benchmark -> question type (or `all`).
    """

    lr: float
    success: dict[str, dict[str, Estimate]]
    against_none: dict[str, dict[str, Estimate]] | None
    answers: dict[str, dict[str, TypeResult]]
    retained: dict[str, Estimate]
    drift: Estimate
    swaps: dict[str, dict[str, int]]


@dataclass(frozen=True)
class Comparison:
    """All protections, in the order given."""

    protections: dict[str, ProtectionResult]

    @classmethod
    def of(cls, runs: Sequence[ComparedRun], questions: Mapping[str, Questions]) -> Self:
        """Summarise runs: the same seeds of every protection, `none` among them.

        Raises:
            ValueError: they are not that.
        """
        grouped: dict[str, list[ComparedRun]] = defaultdict(list)
        for run in runs:
            grouped[run.protection].append(run)
        seeds = {name: [run.seed for run in group] for name, group in grouped.items()}
        if REFERENCE not in grouped or len({tuple(each) for each in seeds.values()}) != 1:
            raise ValueError(f"every protection needs the same seeds, {REFERENCE} among them: {seeds}")
        drawn = _Drawn(grouped[REFERENCE], questions)
        return cls({name: _result(group, drawn, grouped[REFERENCE]) for name, group in grouped.items()})

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class _Drawn:
    """The same draws of seeds, episodes and scenes for every protection."""

    def __init__(self, like: Sequence[ComparedRun], questions: Mapping[str, Questions]) -> None:
        first, count = like[0], len(like)
        self.questions = questions
        self.tasks = [(split, task) for split, by_task in first.rollouts.items() for task in (*by_task, ALL)]
        self.episodes = {
            (split, task): Resampling(count, count=len(first.outcomes(split, task)))
            for split, task in self.tasks
        }
        self.kinds = {
            (name, kind): np.array([kind in (ALL, each) for each in asked.types])
            for name, asked in questions.items()
            for kind in (*dict.fromkeys(asked.types), ALL)
        }
        self.scenes = {
            (name, kind): Resampling(count, groups_N=list(np.array(questions[name].scenes)[chosen]))
            for (name, kind), chosen in self.kinds.items()
        }
        self._seeds = Resampling(count, count=1)

    def over_seeds(self, values_K: Sequence[float]) -> Array:
        return self._seeds.means(np.array(values_K)[:, None])


def _result(
    group: Sequence[ComparedRun], drawn: _Drawn, reference: Sequence[ComparedRun]
) -> ProtectionResult:
    success: dict[str, dict[str, Estimate]] = defaultdict(dict)
    against: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for split, task in drawn.tasks:
        episodes = drawn.episodes[split, task]
        now_KE, none_KE = (
            np.stack([bits(run.outcomes(split, task)) for run in runs]) for runs in (group, reference)
        )
        success[split][task] = rate_estimate(episodes.means(now_KE), episodes.groups)
        against[split][task] = change_estimate(episodes.means(now_KE - none_KE), now_KE - none_KE)
    answers: dict[str, dict[str, TypeResult]] = defaultdict(dict)
    retained: dict[str, Estimate] = {}
    for benchmark, kind in drawn.kinds:
        asked, chosen = drawn.questions[benchmark], drawn.kinds[benchmark, kind]
        correct_KN = np.stack([bits(run.answers[benchmark])[chosen] for run in group])
        before_KN = np.repeat(bits(asked.pretrained)[None, chosen], len(group), axis=0)
        scenes = drawn.scenes[benchmark, kind]
        answers[benchmark][kind] = _type_result(
            correct_KN, before_KN, scenes, np.array(asked.scenes)[chosen].tolist()
        )
        if kind == ALL:
            retained[benchmark] = estimate(scenes.means(correct_KN) / scenes.means(before_KN))
    tasks = group[0].swaps
    return ProtectionResult(
        lr=group[0].lr,
        success=dict(success),
        against_none=None if group is reference else dict(against),
        answers=dict(answers),
        retained=retained,
        drift=estimate(drawn.over_seeds([run.drift for run in group])),
        swaps={
            task: {
                key: sum(run.swaps[task][key] for run in group) for key in ("pairs", "followed", "changed")
            }
            for task in tasks
        },
    )


def _type_result(
    correct_KN: Array, before_KN: Array, drawn: Resampling, scenes_N: Sequence[int]
) -> TypeResult:
    changes_KN = correct_KN - before_KN
    return TypeResult(
        accuracy=rate_estimate(drawn.means(correct_KN), drawn.groups),
        pretrained=float(before_KN[0].mean()),
        change=change_estimate(drawn.means(changes_KN), changes_KN, scenes_N),
        p_value=mcnemar_p(changes_KN.ravel(), list(scenes_N) * len(changes_KN)),
        n=len(scenes_N),
    )


def verdicts(comparison: Comparison, *, ours: str, benchmark: str, within: float = 0.02) -> list[str]:
    """What can and what cannot be said of `ours`, in sentences.

    Args:
        comparison: with `ours`, `none` and, to say whether the task needs a backbone that learns, `freeze`.
        ours: the protection to judge.
        benchmark: whose questions count.
        within: how much accuracy it may lose.
    """
    rows = comparison.protections
    none, row = rows[REFERENCE], rows[ours]
    sentences = []
    if "freeze" in rows:
        gap = _negated(_against(rows["freeze"], "test"))
        helps = _more(gap, "helps", "hinders")
        sentences.append(
            f"A backbone that learns {helps} on test scenes: `none` against `freeze` {_points(gap)}."
        )
    lost = none.answers[benchmark][ALL].change
    gains = _more(lost, "gains", "loses")
    sentences.append(f"Without protection the backbone {gains} answers: {_points(lost)}.")
    for split in row.success:
        change = _against(row, split)
        sentences.append(
            f"On {split} scenes `{ours}` {_more(change, 'succeeds more often', 'succeeds less often')} than `none`: "
            f"{_points(change)}."
        )
    kept = row.answers[benchmark][ALL].change
    if kept.ci[0] >= -within:
        verdict = "keeps"
    elif kept.ci[1] < -within:
        verdict = "does not keep"
    else:
        verdict = "is not surely known to keep"
    sentences.append(
        f"`{ours}` {verdict} its answers within {100 * within:g} points of the pretrained model: {_points(kept)}."
    )
    return sentences


def _against(row: ProtectionResult, split: str) -> Estimate:
    assert row.against_none is not None
    return row.against_none[split][ALL]


def _negated(change: Estimate) -> Estimate:
    return Estimate(-change.value, (-change.ci[1], -change.ci[0]))


def _more(change: Estimate, more: str, less: str) -> str:
    if change.ci[0] > 0:
        return more
    return less if change.ci[1] < 0 else f"neither surely {more} nor {less}"


def _points(change: Estimate) -> str:
    low, high = change.ci
    return f"{100 * change.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")
