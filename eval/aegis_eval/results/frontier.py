"""Retention against action error, over seeds: what an ablation can conclude, with intervals.

Runs of one seed share demonstrations, initial expert and order of samples, and all runs are asked the same questions
and compared at the same frames: differences are paired. Intervals come from `aegis_eval.statistics.resampling`.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from aegis_eval.statistics.resampling import Estimate, Resampling, bits, estimate


@dataclass(frozen=True)
class Run:
    """One training and what was measured of it.

    Attributes:
        correct: a `1` for every question it answers correctly, else a `0`.
        pretrained: the same of the pretrained model.
        scenes: of each question.
        episode_errors: mean action error in each held-out episode, of so many frames and draws.
        per_type: accuracy by question type.
        curves: of the training log: name -> {"steps", "values"}.
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

    @classmethod
    def read(
        cls,
        variant: str,
        seed: int,
        *,
        vqa: Path,
        action_error: Path,
        curves: dict[str, dict[str, list[float]]],
    ) -> Self:
        """From the folder that `aegis-vqa` and the file that `aegis-action-error` wrote."""
        results = json.loads((vqa / "results.json").read_text())
        samples = [json.loads(line) for line in (vqa / "samples.jsonl").read_text().splitlines()]
        errors = json.loads(action_error.read_text())
        by_episode: dict[int, list[float]] = defaultdict(list)
        for episode, error in zip(errors["episode_of_error"], errors["errors"], strict=True):
            by_episode[episode].append(error)
        return cls(
            variant,
            seed,
            results["accuracy"],
            errors["action_error"],
            correct="".join(str(int(sample["correct"])) for sample in samples),
            pretrained="".join(str(int(sample["pretrained_correct"])) for sample in samples),
            scenes=[int(sample["id"].split("/")[3]) for sample in samples],
            episode_errors=[round(float(np.mean(by_episode[episode])), 5) for episode in sorted(by_episode)],
            episode_frames=[len(by_episode[episode]) for episode in sorted(by_episode)],
            per_type={kind: score["accuracy"] for kind, score in results["per_type"].items()},
            curves=curves,
        )


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
    """

    accuracy: Estimate
    retained: Estimate
    action_error: Estimate
    gain_kept: Estimate | None
    by_seed: list[tuple[float, float]]


@dataclass(frozen=True)
class Frontier:
    """All variants, the pretrained accuracy, and by how much `stop_gradient` errs more than `none`."""

    pretrained: float
    gain: Estimate
    variants: Mapping[str, VariantResult]

    @classmethod
    def of(cls, runs: Sequence[Run], seed: int = 0) -> Self:
        """Summarise `runs`, which hold `none` and `stop_gradient` and the same seeds of every variant.

        Raises:
            ValueError: they do not.
        """
        grouped: dict[str, list[Run]] = defaultdict(list)
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
            )
            for name, group in grouped.items()
        }
        return cls(float(reference.mean()), estimate(gain), variants)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
