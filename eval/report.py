"""One self-contained HTML page about one or more runs: both skills, with intervals, figures and videos.

Takes finished results (`aegis_eval.run_summary`); computes none.
"""

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from aegis_eval import page
from aegis_eval.report_figures import headline, retention, success, training
from aegis_eval.report_media import films, questions
from aegis_eval.run_summary import Json, RunSummary, read_vqa
from aegis_policy.errors import AegisError
from aegis_policy.files import atomic_write

__all__ = ["RunSummary", "read_vqa", "write_report"]


def write_report(
    path: Path | str,
    runs: Sequence[RunSummary],
    *,
    title: str = "Robot skill and retained knowledge",
    provenance: Json | None = None,
    videos_per_task: int = 2,
    examples: int = 6,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        runs: one or more, in the order to show them.
        title: heading of the page.
        provenance: JSON-able, shown at the end.
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
            _provenance(runs, provenance),
        ]
    )
    path = Path(path)
    with atomic_write(path) as beside:
        beside.write_text(page.page(title, body))
    return path


def _provenance(runs: Sequence[RunSummary], provenance: Json | None) -> str:
    known = {run.name: run.vqa["provenance"] for run in runs if run.vqa and "provenance" in run.vqa}
    data = {**({"report": provenance} if provenance else {}), **known}
    if not data:
        return ""
    text = escape(json.dumps(data, indent=2, default=str))
    summary = "<summary>Commands, versions, seeds, hardware</summary>"
    return f"<h2>Provenance</h2><details>{summary}<pre>{text}</pre></details>"
