"""Retention against action error, over seeds: what an ablation can conclude, with intervals.

Runs of one seed share demonstrations, initial expert and order of samples, and all runs are asked the same questions
and compared at the same frames: differences are paired. Intervals come from `aegis_eval.statistics.resampling`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from aegis_eval.results import text_files
from aegis_eval.results.run_file import Json, RunFile
from aegis_eval.statistics.resampling import Estimate, Resampling, bits, estimate

_FURTHER = "vqa-"
"""What the kinds of stages begin with that ask further benchmarks."""


@dataclass(frozen=True)
class AblatedRun:
    """One training and what was measured of it.

    Attributes:
        correct: a `1` for every question it answers correctly, else a `0`.
        pretrained: the same of the pretrained model.
        scenes: of each question.
        episode_errors: mean action error in each held-out episode, of so many frames and draws.
        per_type: accuracy by question type.
        curves: of the training log: name -> {"steps", "values"}.
        texts: file, or further benchmark -> what was found of it, as `measured.text_answers` or
            `measured.running_text` has it.
    """

    variant: str
    seed: int
    accuracy: float
    action_error: float
    correct: str
    pretrained: str
    scenes: list[int]
    episode_errors: list[float]
    episode_frames: list[int]
    per_type: dict[str, float]
    curves: dict[str, dict[str, list[float]]]
    texts: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunFile) -> Self:
        """What an ablation counts of a run's result file."""
        answers, errors = run.measured["vqa"], run.measured["action-error"]
        return cls(
            run.variant,
            run.seed,
            answers["accuracy"],
            errors["action_error"],
            correct=answers["correct"],
            pretrained=answers["pretrained"]["correct"],
            scenes=answers["scenes"],
            episode_errors=errors["episode_errors"],
            episode_frames=errors["episode_frames"],
            per_type=answers["per_type"],
            curves=run.measured["training"],
            texts={**text_files.text_files(run.measured), **_further(run.measured)},
        )


def _further(measured: Json) -> dict[str, Json]:
    """Benchmarks beside the first, as files of questions are, with scenes."""
    return {
        kind.removeprefix(_FURTHER): {
            "correct": found["correct"],
            "pretrained": found["pretrained"]["correct"],
            "scenes": found["scenes"],
        }
        for kind, found in measured.items()
        if kind.startswith(_FURTHER)
    }


@dataclass(frozen=True)
class VariantResult:
    """One variant over its seeds.

    Attributes:
        accuracy: VQA accuracy.
        retained: as a share of the pretrained model's.
        action_error: on held-out demonstrations.
        gain_kept: which share of the lower error that `none` has over `stop_gradient` it has too; None where the
            two cannot be told apart.
        by_seed: (accuracy, action error) of each.
        text_retained: file of questions without pictures -> `retained` of these; without those of which the pretrained
            model knows hardly any.
        text_kl: file of running text -> KL to the pretrained model, nats a token.
    """

    accuracy: Estimate
    retained: Estimate
    action_error: Estimate
    gain_kept: Estimate | None
    by_seed: list[tuple[float, float]]
    text_retained: Mapping[str, Estimate]
    text_kl: Mapping[str, Estimate]


@dataclass(frozen=True)
class Frontier:
    """All variants, the pretrained accuracy, and by how much `stop_gradient` errs more than `none`."""

    pretrained: float
    gain: Estimate
    variants: Mapping[str, VariantResult]

    @classmethod
    def of(cls, runs: Sequence[AblatedRun], seed: int = 0) -> Self:
        """Summarise `runs`, which hold `none` and `stop_gradient` and the same seeds of every variant.

        Raises:
            ValueError: they do not.
        """
        grouped: dict[str, list[AblatedRun]] = defaultdict(list)
        for run in runs:
            grouped[run.variant].append(run)
        seeds = {name: [run.seed for run in group] for name, group in grouped.items()}
        if (
            not {"none", "stop_gradient"} <= grouped.keys()
            or len({tuple(each) for each in seeds.values()}) != 1
        ):
            raise ValueError(
                f"every variant needs the same seeds, none and stop_gradient among them: {seeds}"
            )
        count = len(grouped["none"])
        questions = Resampling(count, groups_N=runs[0].scenes, seed=seed)
        episodes = Resampling(
            count, count=len(runs[0].episode_errors), weights_N=runs[0].episode_frames, seed=seed
        )
        reference = bits(runs[0].pretrained)
        correct = {name: np.stack([bits(run.correct) for run in group]) for name, group in grouped.items()}
        errors = {name: np.array([run.episode_errors for run in group]) for name, group in grouped.items()}
        accuracy = {name: questions.means(values) for name, values in correct.items()}
        error = {name: episodes.means(values) for name, values in errors.items()}
        before = questions.means(np.repeat(reference[None], count, axis=0))
        gain = error["stop_gradient"] - error["none"]
        told_apart = bool((gain > 0).all())  # in every draw, or some would divide by what is no gain
        variants = {
            name: VariantResult(
                accuracy=estimate(accuracy[name]),
                retained=estimate(accuracy[name] / before),
                action_error=estimate(error[name]),
                gain_kept=estimate((error["stop_gradient"] - error[name]) / gain) if told_apart else None,
                by_seed=[(run.accuracy, run.action_error) for run in group],
                text_retained=text_files.retained([run.texts for run in group], seed),
                text_kl=text_files.divergence([run.texts for run in group], seed),
            )
            for name, group in grouped.items()
        }
        return cls(float(reference.mean()), estimate(gain), variants)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
