"""The page of single runs: both skills of each, with intervals, figures and videos, in one self-contained file."""

import json
from collections.abc import Sequence
from pathlib import Path

from aegis_eval.pages import media, numbers
from aegis_eval.pages.html import render
from aegis_eval.results.baselines import Shares
from aegis_eval.results.run import Json, RunSummary
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write

REPORT_TITLE = "Robot skill and retained knowledge"


def write_report(
    path: Path | str,
    runs: Sequence[RunSummary],
    *,
    title: str = REPORT_TITLE,
    described: Json | None = None,
    baselines: Shares | None = None,
    told: media.Instruction | None = None,
    videos_per_task: int = 2,
    examples: int = 6,
) -> Path:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        runs: one or more, in the order to show them.
        title: heading of the page.
        described: where the numbers come from, JSON-able, shown at the end.
        baselines: arms that ignore their instruction, in the scenes of the runs.
        told: the instruction of an episode, for runs that were shown the same scenes: they are filmed side by side.
        videos_per_task: of each run, a success and a failure where both were filmed; or scenes side by side.
        examples: questions shown with their images.

    Raises:
        AegisError: no runs, two of one name, or a video that is not one.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        raise AegisError(f"a report needs runs of different names, got {', '.join(names) or 'none'}.")
    page = render(
        "report.jinja",
        title=title,
        lead=numbers.lead(runs),
        cards=numbers.run_cards(runs),
        success=numbers.success(runs, baselines or {}),
        listening=numbers.listening(runs),
        retention=numbers.retention(runs),
        between=numbers.between(runs),
        charts=numbers.charts({run.name: run.curves for run in runs}),
        films=_films(runs, told, videos_per_task),
        questions=media.questions(runs, examples),
        provenance=_provenance(runs, described),
    )
    path = Path(path)
    with atomic_write(path) as beside:
        beside.write_text(page)
    return path


def _films(runs: Sequence[RunSummary], told: media.Instruction | None, per_task: int) -> list[media.FilmRow]:
    if told is None:
        return media.films(runs, per_task)
    rollouts = {run.name: run.rollouts for run in runs if run.rollouts is not None}
    return media.films_side_by_side(rollouts, told, per_task)


def _provenance(runs: Sequence[RunSummary], described: Json | None) -> str:
    """What the page and the answers say of where they come from, as JSON; empty where nothing is known."""
    known = {run.name: run.vqa["provenance"] for run in runs if run.vqa and "provenance" in run.vqa}
    data = {**({"report": described} if described else {}), **known}
    return json.dumps(data, indent=2, default=str) if data else ""
