"""What a comparison of protections can conclude: success, retention and their differences, with intervals.

All runs meet the same initial states and the same questions, so differences are paired. Intervals resample seeds, then
episodes or scenes (`aegis_eval.statistics.resampling`); those of a single run are Wilson's. With few seeds a bootstrap
over them is too narrow rather than too wide: what lies just outside an interval is not yet a finding.

Shapes: K seeds, N questions, E episodes.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from aegis_eval.results import text_files
from aegis_eval.results.baselines import Baseline, share_estimate
from aegis_eval.results.compared import ALL, ComparedRun, Questions
from aegis_eval.results.stacked import correct, outcomes, trained
from aegis_eval.results.standing import Standing, standings
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
OURS = "aegis"
SCENES = "tabletop"
"""The benchmark of questions about scenes, whose answers decide."""


@dataclass(frozen=True)
class TypeResult:
    """Answers to the questions of one type, over all seeds.

    Attributes:
        accuracy: share of right answers.
        pretrained: the pretrained model's share.
        change: of the share against the pretrained model's.
        p_value: McNemar's, generalised to scenes with several changes, over the answers of all seeds: of these very
            trainings, not of others, and not corrected for how many types and protections are looked at.
        n: questions of the type.
    """

    accuracy: Estimate
    pretrained: float
    change: Estimate
    p_value: float
    n: int


@dataclass(frozen=True)
class ActedResult:
    """How questions were answered by going somewhere.

    Attributes:
        acted: how often the arm went to what was meant.
        answered: how often the VLM's words were right.
        ignoring: arm that ignores the questions -> how often it is right.
    """

    acted: Estimate
    answered: Estimate
    ignoring: dict[str, float]


@dataclass(frozen=True)
class ProtectionResult:
    """One protection over its seeds.

    Attributes:
        lr: learning rate of the backbone.
        success: split -> task (or `all`) -> rate.
        against_none: the same of the difference to `none` on the same initial states; None for `none` itself.
        against_others: every protection of another training -> the difference of the success on test scenes, with
            intervals that hold for all pairs of trainings together (Bonferroni), whichever of them is then looked at.
        against_baselines: split -> baseline -> the difference of the success over all tasks, in the same scenes.
        answers: benchmark -> question type (or `all`) -> how it was answered.
        retained: benchmark -> accuracy as a share of the pretrained model's.
        drift: mean relative drift of the activations.
        swaps: task -> `pairs`, `followed`, `changed` of `aegis-swap`, sums over the seeds.
        acted: kind of `aegis-act` (or `all`) -> how it was acted on; empty where not all runs were asked alike.
        text_retained, text_kl: file without pictures -> `text_files.retained` of questions, `text_files.divergence` of
            running text.
    """

    lr: float
    success: dict[str, dict[str, Estimate]]
    against_none: dict[str, dict[str, Estimate]] | None
    against_others: dict[str, Estimate]
    against_baselines: dict[str, dict[str, Estimate]]
    answers: dict[str, dict[str, TypeResult]]
    retained: dict[str, Estimate]
    drift: Estimate
    swaps: dict[str, dict[str, int]]
    acted: dict[str, ActedResult]
    text_retained: dict[str, Estimate]
    text_kl: dict[str, Estimate]


@dataclass(frozen=True)
class BaselineResult:
    """An arm that ignores its instruction.

    Attributes:
        success: split -> task (or `all`) -> rate.
        named: how often it goes to the named object in the rollouts of `aegis-swap`.
        rollouts: how many those are.
    """

    success: dict[str, dict[str, Estimate]]
    named: Estimate
    rollouts: int

    @classmethod
    def of(cls, arm: Baseline) -> Self:
        """Summarise one."""
        named = [share for shares in arm.named.values() for share in shares]
        return cls(
            {
                split: {
                    task: share_estimate(shares) for task, shares in {**tasks, ALL: arm.shares(split)}.items()
                }
                for split, tasks in arm.success.items()
            },
            share_estimate(named),
            len(named),
        )


@dataclass(frozen=True)
class Comparison:
    """All protections, in the order given, and the arms that ignore their instruction.

    Attributes:
        standings: how ours stands to each of the others; empty where it was not compared.
    """

    protections: dict[str, ProtectionResult]
    baselines: dict[str, BaselineResult]
    standings: dict[str, Standing]

    @classmethod
    def of(
        cls,
        runs: Sequence[ComparedRun],
        questions: Mapping[str, Questions],
        baselines: Sequence[Baseline] = (),
    ) -> Self:
        """Summarise runs: the same seeds of every protection, `none` among them.

        Args:
            runs: of every protection and seed.
            questions: what they were asked.
            baselines: what they are held against, in the same scenes.

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
        return cls(
            {name: _result(group, drawn, grouped, baselines) for name, group in grouped.items()},
            {arm.name: BaselineResult.of(arm) for arm in baselines},
            standings(OURS, grouped, questions[SCENES].scenes, SCENES) if OURS in grouped else {},
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class _Drawn:
    """What is measured, with the same draws of seeds, episodes and scenes for every protection.

    Attributes:
        episodes: (split, task or `all`) -> draws of its episodes.
        questions: what is asked, benchmark by benchmark.
        chosen: (benchmark, question type or `all`) -> which of its questions are of that type.
        scenes: the same keys -> draws of the scenes of these questions.
        seeds: draws of seeds alone.
    """

    def __init__(self, like: Sequence[ComparedRun], questions: Mapping[str, Questions]) -> None:
        first, count = like[0], len(like)
        self.episodes = {
            (split, task): Resampling(count, count=len(first.outcomes(split, task)))
            for split, by_task in first.rollouts.items()
            for task in (*by_task, ALL)
        }
        self.questions = questions
        self.chosen = {
            (name, kind): np.array([kind in (ALL, each) for each in asked.types])
            for name, asked in questions.items()
            for kind in (*dict.fromkeys(asked.types), ALL)
        }
        self.scenes = {
            (name, kind): Resampling(count, groups_N=list(np.array(questions[name].scenes)[chosen]))
            for (name, kind), chosen in self.chosen.items()
        }
        self.seeds = Resampling(count, count=1)
        self.acted = {kind: len(found["acted"]) for kind, found in first.acted.items()}
        """Kind of question that is acted on -> how many, two a scene, one after the other."""


def _result(
    group: Sequence[ComparedRun],
    drawn: _Drawn,
    groups: Mapping[str, Sequence[ComparedRun]],
    baselines: Sequence[Baseline],
) -> ProtectionResult:
    reference = groups[REFERENCE]
    success: dict[str, dict[str, Estimate]] = defaultdict(dict)
    against: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for (split, task), episodes in drawn.episodes.items():
        success[split][task] = rate_estimate(episodes.means(outcomes(group, split, task)), episodes.groups)
        against[split][task] = _difference(group, reference, drawn, split, task)
    return ProtectionResult(
        lr=group[0].lr,
        success=dict(success),
        against_none=None if group is reference else dict(against),
        against_others=_against_others(group, drawn, groups),
        against_baselines={
            split: {arm.name: _against_baseline(group, arm, drawn, split) for arm in baselines}
            for split in group[0].rollouts
        },
        answers=_answers(group, drawn),
        retained={name: _retained(group, drawn, name) for name in drawn.questions},
        drift=estimate(drawn.seeds.means(np.array([[run.drift] for run in group]))),
        swaps=_swaps(group),
        acted=_acted(group, drawn),
        text_retained=text_files.retained([run.texts for run in group]),
        text_kl=text_files.divergence([run.texts for run in group]),
    )


def _difference(
    group: Sequence[ComparedRun],
    other: Sequence[ComparedRun],
    drawn: _Drawn,
    split: str,
    task: str,
    level: float = 0.95,
) -> Estimate:
    """Success less the other's, on the same initial states."""
    changes_KE = outcomes(group, split, task) - outcomes(other, split, task)
    return change_estimate(drawn.episodes[split, task].means(changes_KE), changes_KE, level=level)


def _against_others(
    group: Sequence[ComparedRun], drawn: _Drawn, groups: Mapping[str, Sequence[ComparedRun]]
) -> dict[str, Estimate]:
    """Difference to every protection that is another training, as sure as all pairs of trainings ask for."""
    folders = {name: trained(other) for name, other in groups.items()}
    pairs = math.comb(len(set(folders.values())), 2)
    return {
        name: _difference(group, other, drawn, "test", ALL, level=1 - 0.05 / pairs)
        for name, other in groups.items()
        if trained(group).isdisjoint(folders[name])
    }


def _against_baseline(group: Sequence[ComparedRun], arm: Baseline, drawn: _Drawn, split: str) -> Estimate:
    changes_KE = outcomes(group, split, ALL) - arm.shares(split)
    return change_estimate(drawn.episodes[split, ALL].means(changes_KE), changes_KE)


def _correct(group: Sequence[ComparedRun], drawn: _Drawn, benchmark: str, kind: str) -> tuple[Array, Array]:
    """Which questions of a type are answered correctly, and were by the pretrained model, (K, N) both."""
    chosen = drawn.chosen[benchmark, kind]
    correct_KN = correct(group, benchmark)[:, chosen]
    before_N = bits(drawn.questions[benchmark].pretrained)[chosen]
    return correct_KN, np.repeat(before_N[None], len(group), axis=0)


def _answers(group: Sequence[ComparedRun], drawn: _Drawn) -> dict[str, dict[str, TypeResult]]:
    answers: dict[str, dict[str, TypeResult]] = defaultdict(dict)
    unmoved = all(run.drift == 0.0 for run in group)
    for (benchmark, kind), scenes in drawn.scenes.items():
        correct_KN, before_KN = _correct(group, drawn, benchmark, kind)
        scenes_N = np.array(drawn.questions[benchmark].scenes)[drawn.chosen[benchmark, kind]].tolist()
        answers[benchmark][kind] = _type_result(correct_KN, before_KN, scenes, scenes_N, unmoved=unmoved)
    return dict(answers)


def _type_result(
    correct_KN: Array, before_KN: Array, drawn: Resampling, scenes_N: Sequence[int], *, unmoved: bool
) -> TypeResult:
    """Count and compare answers; `unmoved` activations whose answers are as before are no sample: they must be."""
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


def _retained(group: Sequence[ComparedRun], drawn: _Drawn, benchmark: str) -> Estimate:
    correct_KN, before_KN = _correct(group, drawn, benchmark, ALL)
    scenes = drawn.scenes[benchmark, ALL]
    return estimate(scenes.means(correct_KN) / scenes.means(before_KN))


def _swaps(group: Sequence[ComparedRun]) -> dict[str, dict[str, int]]:
    return {
        task: {key: sum(run.swaps[task][key] for run in group) for key in ("pairs", "followed", "changed")}
        for task in group[0].swaps
    }


def _acted(group: Sequence[ComparedRun], drawn: _Drawn) -> dict[str, ActedResult]:
    counts = drawn.acted
    if any({kind: len(found["acted"]) for kind, found in run.acted.items()} != counts for run in group):
        return {}
    results = {}
    for kind in (*counts, ALL) if counts else ():
        kinds = [kind] if kind != ALL else list(counts)
        scenes = [(name, number // 2) for name in kinds for number in range(counts[name])]
        scene_of = {scene: index for index, scene in enumerate(dict.fromkeys(scenes))}
        resampling = Resampling(len(group), groups_N=[scene_of[scene] for scene in scenes])

        def shown(what: str, kinds: list[str] = kinds, over: Resampling = resampling) -> Estimate:
            right_KN = np.stack([bits("".join(run.acted[name][what] for name in kinds)) for run in group])
            return rate_estimate(over.means(right_KN), over.groups)

        first = group[0].acted
        weights = [counts[name] for name in kinds]
        results[kind] = ActedResult(
            shown("acted"),
            shown("answered"),
            {
                arm: float(np.average([first[name]["ignoring"][arm] for name in kinds], weights=weights))
                for arm in first[kinds[0]]["ignoring"]
            },
        )
    return results
