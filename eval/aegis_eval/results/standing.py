"""How one protection stands to each of the others in both skills at once, but for margins that count as no difference.

Differences are paired: the same seeds, initial states and questions. One draw of the bootstrap holds for both skills'
seeds, so that the probability of being at least as good in both knows what they share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_eval.results.compared import ALL, ComparedRun
from aegis_eval.results.stacked import correct, outcomes, trained
from aegis_eval.statistics.resampling import Array, Estimate, Resampling, change_estimate

SUCCESS_MARGIN = 0.05
ANSWERS_MARGIN = 0.02
"""Differences that count as none, in shares of episodes and of answers: set on 1 December 2026."""


@dataclass(frozen=True)
class Standing:
    """One protection against another.

    Attributes:
        success: its success on test scenes less the other's; the interval holds for all others together (Bonferroni).
        answers: the same of the share of questions about scenes that are answered.
        within: how likely it is at least as good in both, but for the margins.
        outright: how likely it is at least as good in both.
    """

    success: Estimate
    answers: Estimate
    within: float
    outright: float

    def no_worse(self) -> bool:
        """Whether it is surely no worse in either skill, but for the margins."""
        return self.success.ci[0] > -SUCCESS_MARGIN and self.answers.ci[0] > -ANSWERS_MARGIN

    def alike(self) -> bool:
        """Whether the two are surely alike in both skills, but for the margins."""
        return self.no_worse() and self.success.ci[1] < SUCCESS_MARGIN and self.answers.ci[1] < ANSWERS_MARGIN


def standings(
    ours: str, groups: Mapping[str, Sequence[ComparedRun]], scenes: Sequence[int], benchmark: str
) -> dict[str, Standing]:
    """How `ours` stands to every protection of another training.

    Args:
        ours: a name in `groups`.
        groups: protection -> its runs, the same seeds of each.
        scenes: of each question of the benchmark.
        benchmark: whose answers count.
    """
    own = groups[ours]
    rivals = {name: group for name, group in groups.items() if trained(group).isdisjoint(trained(own))}
    level = 1 - 0.05 / max(len(rivals), 1)
    moved = outcomes(own, "test", ALL)
    episodes = Resampling(len(own), count=moved.shape[1])
    asked = Resampling(len(own), groups_N=list(scenes))
    found = {}
    for name, group in rivals.items():
        success_KE = moved - outcomes(group, "test", ALL)
        answers_KN = correct(own, benchmark) - correct(group, benchmark)
        success_R, answers_R = episodes.means(success_KE), asked.means(answers_KN)
        found[name] = Standing(
            change_estimate(success_R, success_KE, level=level),
            change_estimate(answers_R, answers_KN, scenes, level=level),
            within=_both(success_R + SUCCESS_MARGIN, answers_R + ANSWERS_MARGIN),
            outright=_both(success_R, answers_R),
        )
    return found


def _both(some_R: Array, others_R: Array) -> float:
    """In which share of the draws, behind the plain estimate, neither is negative."""
    least_R = np.minimum(some_R, others_R)[1:]
    return float((least_R >= -1e-12).mean())
