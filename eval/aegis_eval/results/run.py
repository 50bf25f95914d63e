"""What is known of one run: its rollouts, its answers, its curves. Read here, shown by the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_eval.results.rollouts import Rollouts, read_rollouts
from aegis_eval.results.swap import SwapProbe
from aegis_eval.results.training_log import Curves, read_curves
from aegis_policy.support.errors import AegisError

Json = dict[str, Any]


@dataclass(frozen=True)
class RunSummary:
    """What is known of one run; whatever is missing is left out of the page.

    Attributes:
        name: how the page calls it, "AEGIS" for instance.
        rollouts: success and videos.
        vqa: `results.json` of `aegis-vqa`.
        answers: `samples.jsonl` of `aegis-vqa`, a dict a line.
        curves: training figures.
        swap: the instruction-swap probe.
    """

    name: str
    rollouts: Rollouts | None = None
    vqa: Json | None = None
    answers: Sequence[Json] = ()
    curves: Curves = field(default_factory=dict)
    swap: SwapProbe | None = None

    @classmethod
    def read(
        cls,
        name: str,
        *,
        eval_dir: Path | None = None,
        vqa_dir: Path | None = None,
        training_log: Path | None = None,
        swap: SwapProbe | None = None,
    ) -> "RunSummary":
        """Collect a run from the folders of `lerobot-eval` and `aegis-vqa` and the log of `lerobot-train`.

        Raises:
            AegisError: something named is missing or unreadable.
        """
        return cls(
            name,
            rollouts=read_rollouts(eval_dir) if eval_dir else None,
            vqa=read_vqa(vqa_dir) if vqa_dir else None,
            answers=_read_answers(vqa_dir) if vqa_dir else (),
            curves=read_curves(training_log) if training_log else {},
            swap=swap,
        )


def read_vqa(directory: Path | str) -> Json:
    """The `results.json` of an output folder of `aegis-vqa`.

    Raises:
        AegisError: it is not there or not JSON with scores.
    """
    source = Path(directory) / "results.json"
    try:
        results: Json = json.loads(source.read_text())
        results["accuracy"], results["per_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AegisError(
            f"{source} is not what aegis-vqa writes ({type(error).__name__}: {error}): name its --output_dir."
        ) from error
    return results


def _read_answers(directory: Path) -> list[Json]:
    source = Path(directory) / "samples.jsonl"
    try:
        return [json.loads(line) for line in source.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise AegisError(
            f"{source} is not what aegis-vqa writes ({error}): name its --output_dir."
        ) from error
