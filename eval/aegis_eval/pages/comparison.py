"""The page of a comparison: what was compared, what won, how sure that is, and what to look at.

Everything is computed from the raw runs of `comparison.json`; videos and answers are shown where the runs' folders
are at hand. The markup is in `templates/comparison.jinja`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from aegis_envs.tabletop.env import seeded_episode
from aegis_eval.pages import media
from aegis_eval.pages.comparison_text import STANDINGS, Summary, markdown, what_was_compared
from aegis_eval.pages.html import render
from aegis_eval.pages.numbers import charts
from aegis_eval.pages.svg import Point, scatter_figure
from aegis_eval.results.compared import ALL, Compared, ComparedRun
from aegis_eval.results.comparison import Comparison
from aegis_eval.results.rollouts import read_rollouts
from aegis_eval.results.run import RunSummary
from aegis_eval.results.training_log import Curve, Curves
from aegis_eval.statistics.intervals import accuracy_interval, wilson_interval
from aegis_eval.statistics.resampling import bits
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import change, p_value, rate
from aegis_policy.support.files import atomic_write
from aegis_policy.support.json_files import write_json

_BENCHMARKS = {"tabletop": "Questions about scenes", "tabletop_robot": "Questions about the robot's frames"}
COMPARISON_TITLE = "Robot skill and retained knowledge, by protection"


def write_comparison(
    compared: Compared,
    folder: Path,
    *,
    runs: Path | None = None,
    title: str = COMPARISON_TITLE,
) -> Path:
    """Write `report.html`, `comparison.md` and `summary.json`, print the table, and name the files.

    Args:
        compared: what `aegis-compare` measured.
        folder: where to.
        runs: the folder of the runs, whose videos and answers are shown.
        title: heading of the page.

    Returns:
        The page.
    """
    kinds = {"common": compared.at_common_rate(), "tuned": compared.at_own_rates()}
    comparisons = {
        name: Comparison.of(runs, compared.questions, compared.baselines)
        for name, runs in kinds.items()
        if runs
    }
    summaries = {name: Summary.of(comparison) for name, comparison in comparisons.items()}
    kind, first = next(iter(comparisons.items()))
    shown = kinds[kind]
    page = render(
        "comparison.jinja",
        title=title,
        compared=what_was_compared(compared),
        common=summaries.get("common"),
        tuned=summaries.get("tuned"),
        about_standings=STANDINGS,
        scatter=_scatter(compared, shown),
        followed=len({run.seed for run in shown if run.curve}),
        tuning=_tuning(compared),
        tasks=_tasks(first),
        types={_BENCHMARKS.get(name, name.capitalize()): _types(first, name) for name in compared.questions},
        charts=charts(_mean_curves(shown)),
        films=_films(compared, shown, runs) if runs else [],
        questions=_questions(shown, runs) if runs else [],
        provenance=_provenance(compared, shown),
    )
    table = markdown(compared, summaries)
    written = [folder / name for name in ("report.html", "comparison.md", "summary.json")]
    for path, text in zip(written, (page, table), strict=False):
        with atomic_write(path) as beside:
            beside.write_text(text)
    write_json(written[-1], {name: each.to_dict() for name, each in comparisons.items()}, indent=1)
    print(f"{table}\nwrote {', '.join(str(path) for path in written)}")
    return written[0]


def _scatter(compared: Compared, runs: Sequence[ComparedRun]) -> Markup:
    """Success on test scenes against answers about scenes, a dot a run."""
    asked = compared.questions["tabletop"]
    series: dict[str, list[tuple[Point, Point]]] = {}
    for run in runs:
        outcomes = run.outcomes("test", ALL)
        succeeded = outcomes.count("1")
        success = Point(succeeded / len(outcomes), wilson_interval(succeeded, len(outcomes)))
        correct = bits(run.answers["tabletop"])
        answers = Point(float(correct.mean()), accuracy_interval(correct > 0, asked.scenes))
        series.setdefault(run.protection, []).append((success, answers))
    expert = "".join(compared.expert["test"].values())
    points = "; ".join(
        f"{name}: " + ", ".join(f"{100 * across.rate:.0f} and {100 * up.rate:.0f}" for across, up in dots)
        for name, dots in series.items()
    )
    return scatter_figure(
        series,
        paths=_paths(runs),
        lines={
            "expert": (expert.count("1") / len(expert), None),
            **{arm.name: (float(arm.shares("test").mean()), None) for arm in compared.baselines},
            "pretrained": (None, asked.pretrained.count("1") / len(asked.pretrained)),
        },
        labels=("success on test scenes, %", "questions answered, %"),
        description="Success on test scenes against questions answered, one point a run with 95 % intervals; lines: "
        f"the scripted expert, arms that ignore their instruction, and the pretrained model. {points}",
    )


def _paths(runs: Sequence[ComparedRun]) -> dict[str, list[list[tuple[float, float]]]]:
    """Of every protection the way of its training through both skills, and the way back by merging; means over the
    seeds that were followed."""
    found = {}
    for name in dict.fromkeys(run.protection for run in runs):
        followed = [run for run in runs if run.protection == name and run.curve]
        if followed:
            found[name] = [_path(followed, kind) for kind in ("step", "alpha")]
    return found


def _path(runs: Sequence[ComparedRun], kind: str) -> list[tuple[float, float]]:
    """Means of success and answers at every place, the last one where the training ended."""
    ways = [
        [
            *((each["outcomes"], each["answers"]) for each in run.curve.get(kind, [])),
            (run.outcomes("test", ALL), run.answers["tabletop"]),
        ]
        for run in runs
    ]
    return [
        (
            float(np.mean([bits(across).mean() for across, _ in at])),
            float(np.mean([bits(up).mean() for _, up in at])),
        )
        for at in zip(*ways, strict=True)
    ]


def _tuning(compared: Compared) -> Table:
    """What was tried, and which of it was taken."""
    rows = [
        [
            each["protection"],
            f"{each['lr']:g}",
            f"{100 * each['success']:.0f}",
            f"{100 * each['retained']:.1f}",
            "yes" if compared.tuned.get(each["protection"]) == each["lr"] else "",
        ]
        for each in compared.tuning
    ]
    return Table(["protection", "backbone lr", "success, validation %", "answers retained %", "taken"], rows)


def _tasks(comparison: Comparison) -> Table:
    """Success of every protection by split and task."""
    rows = [
        [
            name,
            split,
            task,
            rate(success),
            "" if row.against_none is None else change(row.against_none[split][task]),
        ]
        for name, row in comparison.protections.items()
        for split, by_task in row.success.items()
        for task, success in by_task.items()
        if task != ALL
    ] + [
        [name, split, task, rate(success)]
        for name, row in comparison.baselines.items()
        for split, by_task in row.success.items()
        for task, success in by_task.items()
        if task != ALL
    ]
    return Table(["protection", "split", "task", "success %", "against none"], rows)


def _types(comparison: Comparison, benchmark: str) -> Table:
    """Answers of every protection by type of question, and how they changed."""
    first = next(iter(comparison.protections.values())).answers[benchmark]
    rows = []
    for kind, before in first.items():
        row = [kind, str(before.n), f"{100 * before.pretrained:.1f}"]
        for result in comparison.protections.values():
            of_kind = result.answers[benchmark][kind]
            changed = f"{change(of_kind.change)}, p {p_value(of_kind.p_value)}"
            row.append(f"{100 * of_kind.accuracy.value:.1f} ({changed})")
        rows.append(row)
    header = ["question type", "n", "pretrained %", *comparison.protections]
    return Table(header, rows, total=True)


def _mean_curves(runs: Sequence[ComparedRun]) -> dict[str, Curves]:
    """Curves of every protection, means over its runs."""
    grouped: dict[str, list[ComparedRun]] = {}
    for run in runs:
        grouped.setdefault(run.protection, []).append(run)
    return {
        protection: {
            figure: _mean_curve([run.curves[figure] for run in group if figure in run.curves])
            for figure in dict.fromkeys(figure for run in group for figure in run.curves)
        }
        for protection, group in grouped.items()
    }


def _mean_curve(logged: Sequence[Mapping[str, Sequence[float]]]) -> Curve:
    """Mean at the steps that all of the curves have."""
    curves = [dict(zip(curve["steps"], curve["values"], strict=True)) for curve in logged]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return Curve(
        [int(step) for step in steps], [sum(curve[step] for curve in curves) / len(curves) for step in steps]
    )


def _films(compared: Compared, runs: Sequence[ComparedRun], folder: Path) -> list[media.FilmRow]:
    """Test rollouts of the first seed of every protection."""
    first = compared.provenance["seed"]

    def told(task: str, episode: int) -> str:
        return seeded_episode(task, "test", first + episode).instruction

    rollouts = {
        run.protection: read_rollouts(folder / run.folder / "rollouts-test") for run in _first_seed(runs)
    }
    return media.films_side_by_side(rollouts, told, per_task=2)


def _questions(runs: Sequence[ComparedRun], folder: Path) -> list[media.QuestionCard]:
    """Questions about scenes with the answers of the first seed of every protection."""
    answered = [
        RunSummary.read(run.protection, vqa_dir=folder / run.folder / "vqa-tabletop")
        for run in _first_seed(runs)
    ]
    return media.questions(answered, 6)


def _first_seed(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    first = min(run.seed for run in runs)
    return [run for run in runs if run.seed == first]


def _provenance(compared: Compared, runs: Sequence[ComparedRun]) -> str:
    """Command, flags and durations as JSON."""
    described = {
        "provenance": compared.provenance,
        "config": compared.config,
        "protections": compared.protections,
        "seconds": {f"{run.protection}, lr {run.lr:g}, seed {run.seed}": run.seconds for run in runs},
    }
    return json.dumps(described, indent=2)
