"""`aegis-report`: one self-contained HTML page about finished runs: both skills, with intervals, figures and videos.

Of a comparison (`aegis-compare`) it is the comparison's page, computed again from its raw JSON; of any other folder it
is one about the runs found in it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aegis_eval.pages import html as page
from aegis_eval.pages.comparison import COMPARISON_TITLE, write_comparison
from aegis_eval.pages.media import films, questions
from aegis_eval.pages.numbers import headline, retention, success, training
from aegis_eval.results.provenance import provenance
from aegis_eval.results.run import Json, RunSummary, find_runs, read_vqa
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write

_TITLE = "Robot skill and retained knowledge"
__all__ = ["ReportConfig", "RunSummary", "main", "read_vqa", "report", "write_report"]


@dataclass
class ReportConfig:
    """Flags of `aegis-report`.

    Attributes:
        runs: the `--output_dir` of `aegis-compare` or its `comparison.json`; else a folder with a folder for every run,
            in which the outputs of `lerobot-eval`, `aegis-vqa`, `aegis-swap` (`swap.json`) and `lerobot-train`
            (`metrics.jsonl`, `*.log`) are looked for.
        output_dir: where the page goes, by default into `runs`.
        title: heading of the page, instead of its own.
    """

    runs: Path
    output_dir: Path | None = None
    title: str | None = None


def main() -> None:
    """Entry point of `aegis-report`."""
    cli.run(ReportConfig, report)


def report(config: ReportConfig) -> Path:
    """Write the page (`report.html`); of a comparison also its table as Markdown and its numbers as JSON.

    Raises:
        AegisError: there are no runs, or something among them is not readable.
    """
    source = config.runs / "comparison.json" if config.runs.is_dir() else config.runs
    if source.is_file():
        try:
            results = json.loads(source.read_text())
            media = source.parent / "runs"
            return write_comparison(
                results,
                config.output_dir or source.parent,
                runs=media if media.is_dir() else None,
                title=config.title or COMPARISON_TITLE,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise AegisError(
                f"--runs={config.runs} is not what aegis-compare writes ({type(error).__name__}: {error})."
            ) from error
    if not config.runs.is_dir():
        raise AegisError(f"--runs={config.runs} does not exist: name a folder of runs or a comparison.json.")
    runs = find_runs(config.runs)
    if not runs:
        raise AegisError(
            f"--runs={config.runs} holds no folder with results of lerobot-eval or aegis-vqa: name the folder that "
            "the runs' folders are in."
        )
    written = write_report(
        (config.output_dir or config.runs) / "report.html",
        runs,
        title=config.title or _TITLE,
        described=provenance(0, 0.0),
    )
    print(f"{len(runs)} runs: {', '.join(run.name for run in runs)}\nwrote {written}")
    return written


def write_report(
    path: Path | str,
    runs: Sequence[RunSummary],
    *,
    title: str = _TITLE,
    described: Json | None = None,
    videos_per_task: int = 2,
    examples: int = 6,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        runs: one or more, in the order to show them.
        title: heading of the page.
        described: where the numbers come from, JSON-able, shown at the end.
        videos_per_task: of each run, a success and a failure where both were filmed.
        examples: questions shown with their images.

    Raises:
        AegisError: no runs, two of one name, or a video that is not one.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise AegisError(f"a report needs runs of different names, got {', '.join(names) or 'none'}.")
    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            headline(runs),
            success(runs),
            retention(runs),
            training(runs),
            films(runs, videos_per_task),
            questions(runs, examples),
            _provenance(runs, described),
        ]
    )
    path = Path(path)
    with atomic_write(path) as beside:
        beside.write_text(page.page(title, body))
    return path


def _provenance(runs: Sequence[RunSummary], described: Json | None) -> str:
    known = {run.name: run.vqa["provenance"] for run in runs if run.vqa and "provenance" in run.vqa}
    data = {**({"report": described} if described else {}), **known}
    if not data:
        return ""
    text = escape(json.dumps(data, indent=2, default=str))
    summary = "<summary>Commands, versions, seeds, hardware</summary>"
    return f"<h2>Provenance</h2><details>{summary}<pre>{text}</pre></details>"


if __name__ == "__main__":
    main()
