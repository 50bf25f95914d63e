"""The work of `aegis-report`: find what runs left, and write their page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from aegis_eval.commands.report import ReportConfig
from aegis_eval.experiments.baselines import of_comparison
from aegis_eval.pages.comparison import COMPARISON_TITLE, write_comparison
from aegis_eval.pages.report import REPORT_TITLE, write_report
from aegis_eval.results.baselines import Baseline, Shares, read_baselines
from aegis_eval.results.compared import Compared
from aegis_eval.results.provenance import provenance
from aegis_eval.results.rows import with_added_rows
from aegis_eval.results.run import RunSummary, find_runs
from aegis_policy.support.errors import AegisError, one_line


def report(config: ReportConfig) -> Path:
    """Write the page (`report.html`); of a comparison also its table as Markdown and its numbers as JSON.

    Raises:
        AegisError: there are no runs, or something among them is not readable.
    """
    source = config.runs / "comparison.json" if config.runs.is_dir() else config.runs
    if source.is_file():
        return _of_comparison(config, source)
    if not config.runs.is_dir():
        raise AegisError(f"--runs={config.runs} does not exist: name a folder of runs or a comparison.json.")
    runs = find_runs(config.runs)
    if not runs:
        raise AegisError(
            f"--runs={config.runs} holds no folder with results of lerobot-eval or aegis-vqa: name the folder that "
            "the runs' folders are in, or the comparison.json that result files are rows of."
        )
    arms = _beside(config.runs / "baseline.json", runs)
    try:
        written = write_report(
            (config.output_dir or config.runs) / "report.html",
            runs,
            title=config.title or REPORT_TITLE,
            described=provenance(0, 0.0),
            baselines=arms,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise AegisError(
            f"--runs={config.runs}: the results of one of {', '.join(run.name for run in runs)} lack something that "
            f"its command writes ({type(error).__name__}: {one_line(error)}): give that command again, or leave "
            "its folder out."
        ) from error
    print(f"{len(runs)} runs: {', '.join(run.name for run in runs)}\nwrote {written}")
    return written


def _beside(file: Path, runs: Sequence[RunSummary]) -> Shares:
    """Arms that ignore their instruction, of the runs' scenes as far as the file says; none where there is no file."""
    if not file.is_file():
        return {}
    arms = read_baselines(file)
    rolled = [(run.name, task) for run in runs if run.rollouts for task in run.rollouts.tasks]
    for shares in arms.values():
        for name, task in rolled:
            if task.task in shares and len(shares[task.task]) != task.episodes:
                raise AegisError(
                    f"{file} is of {len(shares[task.task])} scenes of {task.task}, and {name} was rolled out in "
                    f"{task.episodes}: give aegis-baseline the evaluations' --episodes, --split and --seed."
                )
    return arms


def _of_comparison(config: ReportConfig, source: Path) -> Path:
    measured = Compared.read(source)
    media = source.parent / "runs"
    try:
        joined = with_added_rows(measured, source.parent)
        return write_comparison(
            joined if joined.baselines else replace(joined, baselines=_baselines(joined)),
            config.output_dir or source.parent,
            runs=media if media.is_dir() and joined is measured else None,  # added rows have no folders
            title=config.title or COMPARISON_TITLE,
        )
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise AegisError(
            f"{source} lacks something that aegis-compare writes ({type(error).__name__}: {one_line(error)}): give "
            "aegis-compare again, or take the file as it was."
        ) from error


def _baselines(compared: Compared) -> list[Baseline]:
    """Of a comparison that was written without them; none where its scenes cannot be simulated."""
    try:
        return of_comparison(compared)
    except AegisError as error:
        print(f"no line of an arm that ignores its instruction: {error}")
        return []
