"""What a comparison of protections can conclude: success, retention and their differences, with intervals.

All runs meet the same initial states and the same questions, so differences are paired. Intervals resample seeds, then
episodes or scenes (`aegis_eval.statistics.resampling`); those of a single run are Wilson's. With few seeds a bootstrap
over them is too narrow rather than too wide: what lies just outside an interval is not yet a finding.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from aegis_eval.results.compared import ALL, ComparedRun, Questions
from aegis_eval.statistics.intervals import mcnemar_p
from aegis_eval.statistics.resampling import (
    Array,
    Estimate,
    Resampling,
    bits,
    change_estimate,
    estimate,
    rate_estimate,
)
from aegis_policy.support.errors import AegisError

REFERENCE = "none"


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
    `against_others` holds every protection of another training -> the difference of the success on test scenes, with
    intervals that hold for all pairs of trainings together (Bonferroni), whichever of them is then looked at.
    """

    lr: float
    success: dict[str, dict[str, Estimate]]
    against_none: dict[str, dict[str, Estimate]] | None
    against_others: dict[str, Estimate]
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
            AegisError: they are not that.
        """
        grouped: dict[str, list[ComparedRun]] = defaultdict(list)
        for run in runs:
            grouped[run.protection].append(run)
        seeds = {name: [run.seed for run in group] for name, group in grouped.items()}
        if REFERENCE not in grouped or len({tuple(each) for each in seeds.values()}) != 1:
            raise AegisError(
                f"a comparison needs the same seeds of every protection, {REFERENCE} among them, got {seeds}: run what "
                "is missing."
            )
        drawn = _Drawn(grouped[REFERENCE], questions)
        return cls({name: _result(group, drawn, grouped) for name, group in grouped.items()})

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
    group: Sequence[ComparedRun], drawn: _Drawn, groups: Mapping[str, Sequence[ComparedRun]]
) -> ProtectionResult:
    reference = groups[REFERENCE]
    success: dict[str, dict[str, Estimate]] = defaultdict(dict)
    against: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for split, task in drawn.tasks:
        episodes = drawn.episodes[split, task]
        success[split][task] = rate_estimate(episodes.means(_outcomes(group, split, task)), episodes.groups)
        against[split][task] = _difference(group, reference, drawn, split, task)
    answers: dict[str, dict[str, TypeResult]] = defaultdict(dict)
    retained: dict[str, Estimate] = {}
    unmoved = all(run.drift == 0.0 for run in group)
    for benchmark, kind in drawn.kinds:
        asked, chosen = drawn.questions[benchmark], drawn.kinds[benchmark, kind]
        correct_KN = np.stack([bits(run.answers[benchmark])[chosen] for run in group])
        before_KN = np.repeat(bits(asked.pretrained)[None, chosen], len(group), axis=0)
        scenes = drawn.scenes[benchmark, kind]
        answers[benchmark][kind] = _type_result(
            correct_KN, before_KN, scenes, np.array(asked.scenes)[chosen].tolist(), unmoved=unmoved
        )
        if kind == ALL:
            retained[benchmark] = estimate(scenes.means(correct_KN) / scenes.means(before_KN))
    tasks = group[0].swaps
    folders = {name: frozenset(run.folder for run in other) for name, other in groups.items()}
    trained = frozenset(run.folder for run in group)
    others = {name: other for name, other in groups.items() if trained.isdisjoint(folders[name])}
    pairs = math.comb(len(set(folders.values())), 2)
    return ProtectionResult(
        lr=group[0].lr,
        success=dict(success),
        against_none=None if group is reference else dict(against),
        against_others={
            name: _difference(group, other, drawn, "test", ALL, level=1 - 0.05 / pairs)
            for name, other in others.items()
        },
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


def _outcomes(group: Sequence[ComparedRun], split: str, task: str) -> Array:
    return np.stack([bits(run.outcomes(split, task)) for run in group])


def _difference(
    group: Sequence[ComparedRun],
    other: Sequence[ComparedRun],
    drawn: _Drawn,
    split: str,
    task: str,
    level: float = 0.95,
) -> Estimate:
    """Of success, on the same initial states."""
    changes_KE = _outcomes(group, split, task) - _outcomes(other, split, task)
    return change_estimate(drawn.episodes[split, task].means(changes_KE), changes_KE, level=level)


def _type_result(
    correct_KN: Array, before_KN: Array, drawn: Resampling, scenes_N: Sequence[int], *, unmoved: bool
) -> TypeResult:
    """Of activations that did not move at all, answers that are as before are no sample of anything: they must be."""
    changes_KN = correct_KN - before_KN
    if unmoved and not changes_KN.any():
        difference = Estimate(0.0, (0.0, 0.0))
    else:
        difference = change_estimate(drawn.means(changes_KN), changes_KN, scenes_N)
    return TypeResult(
        accuracy=rate_estimate(drawn.means(correct_KN), drawn.groups),
        pretrained=float(before_KN[0].mean()),
        change=difference,
        p_value=mcnemar_p(changes_KN.ravel(), list(scenes_N) * len(changes_KN)),
        n=len(scenes_N),
    )
