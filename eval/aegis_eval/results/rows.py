"""The rows of a comparison: one file a run, from which `comparison.json` is put together, and to which anybody may add.

Result files that lie beside a `comparison.json` (`*-seed*.json`) are further rows of its table.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aegis_eval.results.compared import Compared, ComparedRun
from aegis_eval.results.comparison import REFERENCE
from aegis_eval.results.run_file import RunFile
from aegis_eval.results.text_files import text_files
from aegis_policy.support.errors import AegisError, one_line

COMPARED_SPLITS = ("test", "unseen")
"""Splits of the tabletop in which every run is rolled out."""
COMPARED_BENCHMARKS = ("tabletop", "tabletop_robot")
"""Whose questions every run is asked."""
_STAGES = {
    "training",
    *(f"rollouts-{split}" for split in COMPARED_SPLITS),
    *(f"vqa-{benchmark}" for benchmark in COMPARED_BENCHMARKS),
    "swap",
    "drift",
}
_MAY_DIFFER = {"dataset", "device"}
"""Flags of a setting that say where things lie, not what they are."""


@dataclass(frozen=True)
class Validation:
    """What a learning rate is chosen by: success on validation scenes, and answers kept on validation questions."""

    protection: str
    lr: float
    success: float
    retained: float

    @property
    def score(self) -> float:
        """Both skills count the same."""
        return self.success + self.retained


_POINTS = ("step", "alpha")
"""What the places of a run's curve are counted in: of the training, and of `aegis-merge`."""


def point_at(kind: str, value: float) -> str:
    """The name of a place of a curve: `step300`, `alpha0.5`."""
    return f"{kind}{value:g}"


def _curve(measured: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`step`, `alpha` -> the places that were measured, in order: `at`, and outcomes and answers there."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in _POINTS:
        places = {
            float(name.removeprefix(f"vqa-{kind}")): answers
            for name, answers in measured.items()
            if name.startswith(f"vqa-{kind}")
        }
        points = [
            {
                "at": at,
                "outcomes": "".join(measured[f"rollouts-{point_at(kind, at)}"].values()),
                "answers": places[at]["correct"],
            }
            for at in sorted(places)
            if f"rollouts-{point_at(kind, at)}" in measured
        ]
        if points:
            found[kind] = points
    return found


def is_row(run: RunFile) -> bool:
    """Whether everything that a comparison reports has been measured."""
    return run.measured.keys() >= _STAGES


def compared_run(run: RunFile) -> ComparedRun:
    """The run as a comparison counts it."""
    found = run.measured
    return ComparedRun(
        protection=run.variant,
        lr=run.lr,
        seed=run.seed,
        rollouts={split: found[f"rollouts-{split}"] for split in COMPARED_SPLITS},
        answers={name: found[f"vqa-{name}"]["correct"] for name in COMPARED_BENCHMARKS},
        swaps=found["swap"],
        drift=found["drift"]["drift"],
        drift_per_layer=found["drift"]["per_layer"],
        folder=run.folder,
        acted=found.get("act", {}),
        texts=text_files(found),
        curve=_curve(found),
        curves=found["training"],
        seconds=run.seconds,
    )


def validation(run: RunFile) -> Validation | None:
    """What a learning rate is chosen by, once both parts of it are measured."""
    if not {"rollouts-val", "vqa-tabletop-val"} <= run.measured.keys():
        return None
    outcomes = "".join(run.measured["rollouts-val"].values())
    answers = run.measured["vqa-tabletop-val"]
    return Validation(
        run.variant,
        run.lr,
        success=outcomes.count("1") / len(outcomes),
        retained=answers["accuracy"] / answers["pretrained"]["accuracy"],
    )


def best_lrs(scores: Iterable[Validation]) -> dict[str, float]:
    """The learning rate of each protection with the best score; ties go to the lower."""
    best: dict[str, Validation] = {}
    for each in sorted(scores, key=lambda each: each.lr):
        if each.protection not in best or each.score > best[each.protection].score:
            best[each.protection] = each
    return {name: each.lr for name, each in best.items()}


def with_added_rows(compared: Compared, folder: Path) -> Compared:
    """The comparison, joined by the runs whose result files lie in `folder`.

    Raises:
        AegisError: a file is no run's, its run had another setting or is not whole, or a seed is missing.
    """
    known = {(run.protection, run.lr, run.seed) for run in compared.runs}
    found = {path: RunFile.read(path) for path in sorted(folder.glob("*-seed*.json"))}
    added = {path: run for path, run in found.items() if (run.variant, run.lr, run.seed) not in known}
    if not added:
        return compared
    for path, run in added.items():
        _require_whole(path, run)
        _require_same_setting(path, run, compared)
    scores = [score for run in added.values() if (score := validation(run)) is not None]
    tuned = _tuned(scores, compared.config.get("lr_grid", []))
    common = [compared.config["lr_backbone"]]
    if compared.config.get("trials"):  # then each comes with the rate at which it is best
        common, tuned = [], {run.variant: run.lr for run in added.values() if is_row(run)}
    rates = {
        name: {*common, *([tuned[name]] if name in tuned else [])}
        for name in dict.fromkeys(run.variant for run in added.values())
    }
    rows = [run for run in added.values() if is_row(run) and run.lr in rates[run.variant]]
    seeds = sorted({run.seed for run in compared.runs if run.protection == REFERENCE})
    for name, lr in ((name, lr) for name, lrs in rates.items() for lr in sorted(lrs)):
        present = sorted(run.seed for run in rows if (run.variant, run.lr) == (name, lr))
        if present != seeds:
            raise AegisError(
                f"{folder}: the files of {name} at learning rate {lr:g} are whole for the seeds {present}, those "
                f"of {REFERENCE} for {seeds}: add the others, from an aegis-compare that has ended."
            )
    return replace(
        compared,
        protections={**compared.protections, **{run.variant: run.flags for run in rows}},
        runs=[*compared.runs, *map(compared_run, rows)],
        tuned={**compared.tuned, **tuned},
        tuning=[*compared.tuning, *map(asdict, scores)],
    )


def _tuned(scores: Sequence[Validation], grid: Sequence[float]) -> dict[str, float]:
    """The best rate of those protections that were tried at all rates of the grid."""
    tried: dict[str, set[float]] = {}
    for each in scores:
        tried.setdefault(each.protection, set()).add(each.lr)
    return best_lrs(each for each in scores if grid and tried[each.protection] >= set(grid))


def _require_whole(path: Path, run: RunFile) -> None:
    """Whatever of it has been measured is there as a comparison counts it."""
    try:
        for name, found in run.measured.items():
            if name in {f"vqa-{benchmark}" for benchmark in COMPARED_BENCHMARKS}:
                found["scenes"]
            if name.startswith("rollouts-"):
                "".join(found.values())
        if is_row(run):
            compared_run(run)
        validation(run)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise AegisError(
            f"{path} lacks something that a run is measured by ({type(error).__name__}: {one_line(error)}): take the "
            "file as it was, or leave it out."
        ) from error


def _require_same_setting(path: Path, run: RunFile, compared: Compared) -> None:
    for key, value in run.setting.items():
        expected = compared.config.get(key, value)
        if key not in _MAY_DIFFER and value != expected:
            raise AegisError(
                f"{path} is of another setting (--{key}={value}) than the comparison.json beside it "
                f"(--{key}={expected}): measure the run with the comparison's flags."
            )
    for name, asked in compared.questions.items():
        answers = run.measured.get(f"vqa-{name}")
        if answers is not None and answers["scenes"] != asked.scenes:
            raise AegisError(
                f"{path} answers other questions of {name} than the comparison.json beside it: measure the run with "
                "the same version of the questions."
            )
