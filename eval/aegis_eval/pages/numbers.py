"""Sections of the report about numbers: headline, success, retention, training."""

from collections.abc import Mapping, Sequence
from html import escape

from aegis_eval.pages import html as page
from aegis_eval.pages.svg import SERIES, Point, curve_figure, rate_figure
from aegis_eval.results.rollouts import Rollouts, TaskSuccess
from aegis_eval.results.run import Json, RunSummary
from aegis_eval.statistics.tables import Table

CURVES = {
    "loss": ("Task loss", "flow-matching loss", True),
    "anchor_distance": ("Drift", "squared W2 distance to the anchor", True),
    "conflict_fraction": ("Conflict", "share of projections in conflict", False),
    "energy_shed": ("Energy shed", "share of gradient energy removed", False),
    "blocked_energy": ("Energy blocked", "share of the update's energy removed", False),
    "weight_penalty": ("Way of the weights", "penalty on it", True),
    "vqa_accuracy": ("Answers", "accuracy of the probe in training", False),
    "grad_norm": ("Gradient norm", "norm before clipping", True),
}
"""Figure of training -> heading, what is shown, whether the axis is logarithmic."""


def headline(runs: Sequence[RunSummary]) -> str:
    """One card a run with its success and its accuracy."""
    cards = []
    for index, run in enumerate(runs):
        numbers = []
        if run.rollouts is not None:
            overall = run.rollouts.overall
            numbers.append(_number(overall.rate, overall.ci, f"episodes succeed, of {overall.episodes}"))
        if run.vqa is not None:
            numbers.append(
                _number(run.vqa["accuracy"], run.vqa["ci"], f"questions answered, of {run.vqa['n']}")
            )
        cards.append(
            f'<section class="card run" style="--run: var(--series-{index % len(SERIES)})">'
            f"<h2>{escape(run.name)}</h2>"
            f'<div class="numbers">{"".join(numbers)}</div>{_kept(run)}</section>'
        )
    lead = "What each policy can do, and what its backbone can still answer. Brackets: 95 % intervals."
    first = next((run.vqa for run in runs if run.vqa is not None), None)
    before = first and first["pretrained"]
    if first and before:
        lead += (
            f" Before any robot training the backbone answered {_percent(before['accuracy'])} "
            f"[{_interval(before['ci'])}]."
        )
    if first and first["blind"] is not None:
        lead += f" Without looking one gets {_percent(first['blind'])}."
    return f'<p class="soft">{escape(lead)}</p><div class="grid">{"".join(cards)}</div>'


def _number(rate: float, ci: Sequence[float], meaning: str) -> str:
    below = f"{escape(meaning)}<br>[{_interval(ci)}]"
    return f'<div class="number"><b>{_percent(rate)}</b><span>{below}</span></div>'


def _kept(run: RunSummary) -> str:
    """How the answers changed against the pretrained model; green or red where the interval excludes 0."""
    reference = run.vqa and run.vqa.get("pretrained")
    if not reference:
        return ""
    paired = reference["paired"]
    low, high = paired["ci"]
    tone = "bad" if high < 0 else "good" if low > 0 else ""
    return (
        f'<p class="{tone}" style="margin: 12px 0 0">{_points(paired["difference"])} points against the '
        f"pretrained model [{_points(low)} to {_points(high)}]: answers lost {paired['lost']}, "
        f"gained {paired['gained']}.</p>"
    )


def success(runs: Sequence[RunSummary]) -> str:
    """Success per task, and what swapping the instruction did."""
    rolled = {run.name: run.rollouts for run in runs if run.rollouts is not None}
    if not rolled:
        return ""
    tasks = list(dict.fromkeys(item.task for rollouts in rolled.values() for item in _rows(rollouts)))
    by_task = {name: {item.task: item for item in _rows(rollouts)} for name, rollouts in rolled.items()}
    figure = rate_figure(
        tasks,
        {
            name: {task: Point(item.rate, item.ci) for task, item in found.items()}
            for name, found in by_task.items()
        },
        description="Success rate per task and run, with 95 % intervals",
    )
    rows = [[task, *(_success_cell(found.get(task)) for found in by_task.values())] for task in tasks]
    parts = [f'<div class="card">{figure}</div>']
    parts.append(
        f'<div class="card">{page.table(Table(["task", *by_task], rows, total="all" in tasks))}</div>'
    )
    return f'<h2>Success</h2><div class="grid">{"".join(parts)}</div>{_swaps(runs)}'


def _rows(rollouts: Rollouts) -> list[TaskSuccess]:
    return [*rollouts.tasks, rollouts.overall] if len(rollouts.tasks) > 1 else list(rollouts.tasks)


def _success_cell(item: TaskSuccess | None) -> str:
    return "" if item is None else f"{item.successes}/{item.episodes}  [{_interval(item.ci)}]"


def _swaps(runs: Sequence[RunSummary]) -> str:
    rows = [
        [
            run.name,
            f"{probe.task}, {probe.split}",
            f"{probe.followed}/{2 * probe.pairs}  [{_interval(probe.followed_ci)}]",
            f"{probe.changed}/{probe.pairs}  [{_interval(probe.changed_ci)}]",
        ]
        for run in runs
        for probe in run.swaps
    ]
    if not rows:
        return ""
    text = (
        "Each scene twice, with two look-alike objects named in turn: did the arm end at the one that was "
        "named, and did the swap change where it went?"
    )
    header = ["run", "task", "went to the named object", "swap changed the object"]
    shown = f'<div class="card">{page.table(Table(header, rows))}</div>'
    return f'<h2>Does it listen?</h2><p class="soft">{text}</p>{shown}'


def retention(runs: Sequence[RunSummary]) -> str:
    """Accuracy per question type against the pretrained model and, where there is one, the blind baseline."""
    asked = {run.name: run.vqa for run in runs if run.vqa is not None}
    if not asked:
        return ""
    first = next(iter(asked.values()))
    reference = _paired_scores(first)
    rows = [*first["per_type"], "all"]
    blind = {kind: score["blind"] for kind, score in _scores(first).items() if score["blind"] is not None}
    figure = rate_figure(
        rows,
        {name: _points_of(_scores(results)) for name, results in asked.items()},
        reference=_points_of(reference) if reference else None,
        blind=blind,
        description="Accuracy per question type of every model, with 95 % intervals"
        + (", and a blind baseline" if blind else ""),
    )
    header = ["question type", "n", *(["blind"] if blind else [])]
    header += [*(["pretrained"] if reference else []), *asked]
    cells = []
    for kind in rows:
        row = [kind, str(_scores(first)[kind]["n"]), *([_percent(blind[kind])] if blind else [])]
        if reference:
            row.append(_percent(reference[kind]["accuracy"]) if kind in reference else "")
        row += [_answer_cell(_scores(results).get(kind)) for results in asked.values()]
        cells.append(row)
    about = "Exact-match accuracy on questions about held-out scenes. " if blind else "Official accuracy. "
    about += "Blind is the most frequent answer to the same question in training. " if blind else ""
    text = (
        f"{escape(str(first['benchmark']))}. {about}Brackets beside a run are the 95 % interval of its paired "
        "difference to the pretrained model, in points; of its own accuracy, in %, where nothing is compared."
    )
    return (
        f'<h2>What the backbone still answers</h2><p class="soft">{text}</p><div class="grid">'
        f'<div class="card wide">{figure}</div>'
        f'<div class="card wide">{page.table(Table(header, cells, total=True))}</div></div>'
    )


def _scores(results: Json) -> dict[str, Json]:
    return {**results["per_type"], "all": results}


def _paired_scores(results: Json) -> dict[str, Json]:
    return {kind: score["pretrained"] for kind, score in _scores(results).items() if score["pretrained"]}


def _points_of(scores: Mapping[str, Json]) -> dict[str, Point]:
    return {kind: Point(score["accuracy"], tuple(score["ci"])) for kind, score in scores.items()}


def _answer_cell(score: Json | None) -> str:
    if score is None:
        return ""
    if not score["pretrained"]:
        return f"{_percent(score['accuracy'])}  [{_interval(score['ci'])}]"
    low, high = score["pretrained"]["paired"]["ci"]
    return f"{_percent(score['accuracy'])}  [{_points(low)} to {_points(high)}]"


def training(runs: Sequence[RunSummary]) -> str:
    """A figure for every known training figure that some run logged."""
    cards = []
    for key, (heading, label, log) in CURVES.items():
        curves = {run.name: run.curves[key] for run in runs if key in run.curves}
        if curves:
            names = [run.name for run in runs]
            figure = curve_figure(curves, names, log=log, description=f"{heading} over training: {label}")
            cards.append(f'<div class="card"><h3>{heading}</h3><p class="soft">{label}</p>{figure}</div>')
    return f'<h2>Over training</h2><div class="grid">{"".join(cards)}</div>' if cards else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _interval(ci: Sequence[float]) -> str:
    return f"{100 * ci[0]:.0f} to {100 * ci[1]:.0f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")
