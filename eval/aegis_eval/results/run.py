"""What is known of one run: rollouts, answers, curves, whether it listens. Read here, shown by the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_eval.results.rollouts import Rollouts, read_rollouts
from aegis_eval.results.swap import SwapProbe, read_swaps
from aegis_eval.results.training_log import METRICS, Curves, parse_training_log, read_curves
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import iterate_jsonl, read_json

Json = dict[str, Any]
_TEXTS = ("id", "type", "question", "answer", "given")
"""What every line of `samples.jsonl` says in words."""


@dataclass(frozen=True)
class RunSummary:
    """What is known of one run; whatever is missing is left out of the page.

    Attributes:
        name: how the page calls it, "AEGIS" for instance.
        rollouts: success and videos.
        vqa: `results.json` of `aegis-vqa`.
        answers: `samples.jsonl` of `aegis-vqa`, a dict a line.
        curves: training figures.
        swaps: the instruction-swap probe of each task.
    """

    name: str
    rollouts: Rollouts | None = None
    vqa: Json | None = None
    answers: Sequence[Json] = ()
    curves: Curves = field(default_factory=dict)
    swaps: Sequence[SwapProbe] = ()

    @classmethod
    def read(
        cls,
        name: str,
        *,
        eval_dir: Path | None = None,
        vqa_dir: Path | None = None,
        training_log: Path | None = None,
        swap: Path | None = None,
    ) -> "RunSummary":
        """Collect a run from what commands left behind.

        Args:
            name: of the run.
            eval_dir: output folder of `lerobot-eval`.
            vqa_dir: output folder of `aegis-vqa`.
            training_log: `metrics.jsonl` of an experiment, or the log of `lerobot-train`.
            swap: output file of `aegis-swap`.

        Raises:
            AegisError: something named is missing or unreadable.
        """
        return cls(
            name,
            rollouts=read_rollouts(eval_dir) if eval_dir else None,
            vqa=read_vqa(vqa_dir) if vqa_dir else None,
            answers=read_answers(vqa_dir) if vqa_dir else (),
            curves=read_curves(training_log) if training_log else {},
            swaps=read_swaps(swap) if swap else (),
        )


def find_runs(folder: Path) -> list[RunSummary]:
    """A summary of every folder in `folder` that holds results, by name.

    A folder that holds several results of a kind is several runs: those of its own folders.
    """
    runs = []
    for run in sorted(path for path in folder.iterdir() if path.is_dir()):
        runs += _runs_in(run, run.name, folder / "logs" / f"{run.name}-training.log")
    return runs


def _runs_in(run: Path, name: str, log: Path) -> list[RunSummary]:
    rolled, asked = sorted(run.rglob("eval_info.json")), sorted(run.rglob("samples.jsonl"))
    swapped = sorted(run.rglob("swap.json"))
    if not rolled and not asked:
        return []
    inner = sorted(path for path in run.iterdir() if path.is_dir())
    deeper: list[RunSummary] = []
    if max(len(rolled), len(asked)) > 1 and inner:
        deeper = [each for path in inner for each in _runs_in(path, f"{name}/{path.name}", log)]
        rolled, asked, swapped = (
            [file for file in files if file.parent == run] for files in (rolled, asked, swapped)
        )
        if not (rolled or asked or swapped):
            return deeper
    own = RunSummary.read(
        name,
        eval_dir=rolled[0].parent if rolled else None,
        vqa_dir=asked[0].parent if asked else None,
        training_log=_figures(run, log),
        swap=swapped[0] if swapped else None,
    )
    return [own, *deeper]


def _figures(run: Path, log: Path) -> Path | None:
    """The file with the figures of a training: `metrics.jsonl`, else the first log that holds some."""
    metrics = sorted(run.rglob(METRICS))
    logs = [path for path in (*sorted(run.rglob("*.log")), log) if path.is_file()]
    parsed = (path for path in logs if parse_training_log(path.read_text(errors="replace")))
    return metrics[0] if metrics else next(parsed, None)


def read_vqa(directory: Path | str) -> Json:
    """The `results.json` of an output folder of `aegis-vqa`.

    Raises:
        AegisError: it is not there or not JSON with scores.
    """
    source = Path(directory) / "results.json"
    try:
        results: Json = read_json(source)
        if "perplexity" in results:
            raise AegisError(
                f"{source} holds running text, which has no answers: name the output about questions."
            )
        results["accuracy"], results["per_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AegisError(
            f"{source} is not what aegis-vqa writes ({type(error).__name__}: {one_line(error)}): name its --output_dir."
        ) from error
    return results


def read_answers(directory: Path | str) -> list[Json]:
    """The `samples.jsonl` of an output folder of `aegis-vqa`, a dict a question.

    Raises:
        AegisError: it is not there or holds something else.
    """
    source = Path(directory) / "samples.jsonl"
    lines = []
    try:
        for number, line in iterate_jsonl(source):
            if not isinstance(line, dict) or not all(isinstance(line.get(key), str) for key in _TEXTS):
                raise ValueError(f"line {number} lacks one of {', '.join(_TEXTS)}, or it is no text")
            if not isinstance(line.get("correct"), bool):
                raise ValueError(f"line {number} does not say whether it is correct")
            lines.append(line)
    except (OSError, ValueError) as error:
        raise AegisError(
            f"{source} is not what aegis-vqa writes ({one_line(error)}): name its --output_dir."
        ) from error
    return lines
