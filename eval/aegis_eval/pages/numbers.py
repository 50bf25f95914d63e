"""What the page of single runs says in numbers: a card a run, success, answers, whether it listens, training.

Computed here from `RunSummary`s, shown by `templates/report.jinja`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from aegis_eval.pages.svg import SERIES, Point, curve_figure, rate_figure
from aegis_eval.results.baselines import ABOUT, ABOUT_EXPERT, EXPERT, UNKNOWN, Shares, share_estimate
from aegis_eval.results.rollouts import ALL_TASKS, Rollouts, TaskSuccess
from aegis_eval.results.run import Json, RunSummary
from aegis_eval.results.training_log import Curves
from aegis_eval.statistics.intervals import compare_paired
from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.tables import Table

_NOT_KNOWN = (
    f"{UNKNOWN}: aegis-baseline with the evaluations' task, split, episodes and seed adds it (--output=baseline.json "
    "beside the runs), if they ran at the tabletop."
)
CURVES = {
    "loss": ("Task loss", "flow-matching loss", True),
    "anchor_distance": ("Drift", "squared W2 distance to the anchor", True),
    "conflict_fraction": ("Conflict", "share of projections in conflict", False),
    "energy_shed": ("Energy shed", "share of gradient energy removed", False),
    "blocked_energy": ("Energy blocked", "share of the steps' energy taken back", False),
    "weight_penalty": ("Way of the weights", "penalty on it", True),
    "vqa_accuracy": ("Answers", "accuracy of the probe in training", False),
    "text_kl": ("Running text", "KL to the first reading, nats a token", True),
    "grad_norm": ("Gradient norm", "norm before clipping", True),
}
"""Figure of training -> heading, what is shown, whether the axis is logarithmic."""
_KINDS = ("subspace", "gaussian")
"""Kinds of anchor that a figure's name in the log may begin with; older logs leave them out."""


@dataclass(frozen=True)
class Number:
    """A rate with what it is a rate of and its interval."""

    rate: str
    meaning: str
    interval: str


@dataclass(frozen=True)
class Change:
    """What became of the pretrained model's answers; `tone` is `good` or `bad` where the interval excludes 0."""

    sentence: str
    tone: str


@dataclass(frozen=True)
class RunCard:
    """A run at a glance; `series` is the number of its colour."""

    name: str
    series: int
    numbers: list[Number]
    change: Change | None


@dataclass(frozen=True)
class Rates:
    """Rates as a figure and as a table, with a paragraph on what they are."""

    figure: Markup
    table: Table
    about: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure of training over steps."""

    heading: str
    meaning: str
    figure: Markup


def run_cards(runs: Sequence[RunSummary]) -> list[RunCard]:
    """Success and accuracy of every run."""
    cards = []
    for index, run in enumerate(runs):
        numbers = []
        if run.rollouts is not None:
            overall = run.rollouts.overall
            meaning = f"episodes succeed, of {overall.episodes}"
            numbers.append(Number(_percent(overall.rate), meaning, _interval(overall.ci)))
        if run.vqa is not None:
            meaning = f"questions answered, of {run.vqa['n']}"
            numbers.append(Number(_percent(run.vqa["accuracy"]), meaning, _interval(run.vqa["ci"])))
        cards.append(RunCard(run.name, index % len(SERIES), numbers, _change(run)))
    return cards


def lead(runs: Sequence[RunSummary]) -> str:
    """What the cards show, and what there is to compare them with."""
    sentences = ["What each policy can do, and what its backbone can still answer. Brackets: 95 % intervals."]
    first = next((run.vqa for run in runs if run.vqa is not None), None)
    if first is not None and (before := first["pretrained"]):
        sentences.append(
            f"Before any robot training the backbone answered {_percent(before['accuracy'])} "
            f"[{_interval(before['ci'])}]."
        )
    if first is not None and first["blind"] is not None:
        sentences.append(f"Without looking one gets {_percent(first['blind'])}.")
    return " ".join(sentences)


def _change(run: RunSummary) -> Change | None:
    reference = run.vqa and run.vqa.get("pretrained")
    if not reference:
        return None
    paired = reference["paired"]
    low, high = paired["ci"]
    return Change(
        f"{_points(paired['difference'])} points against the pretrained model [{_points(low)} to {_points(high)}]: "
        f"answers lost {paired['lost']}, gained {paired['gained']}.",
        tone="bad" if high < 0 else "good" if low > 0 else "",
    )


def success(runs: Sequence[RunSummary], baselines: Shares) -> Rates | None:
    """Success per task, and over all where there are several; None where no run was rolled out.

    Args:
        runs: whose rollouts are shown.
        baselines: arm -> task -> how likely it succeeds in each of the same scenes, as `aegis-baseline` writes them.
    """
    rolled = {run.name: run.rollouts for run in runs if run.rollouts is not None}
    if not rolled:
        return None
    by_task = {name: {each.task: each for each in _tasks(rollouts)} for name, rollouts in rolled.items()}
    tasks = list(dict.fromkeys(task for found in by_task.values() for task in found))
    held = {arm: found for arm, shares in baselines.items() if (found := _estimates(shares, tasks))}
    strongest = max(
        (arm for arm in held if arm != EXPERT),
        key=lambda arm: sum(each.value for each in held[arm].values()),
        default=None,
    )
    figure = rate_figure(
        tasks,
        {
            name: {task: Point(each.rate, each.ci) for task, each in found.items()}
            for name, found in by_task.items()
        },
        ticks=(strongest, {task: each.value for task, each in held[strongest].items()})
        if strongest
        else None,
        description="Success rate per task and run, with 95 % intervals",
    )
    rows = [
        [
            task,
            *(_success_cell(found.get(task)) for found in by_task.values()),
            *(_baseline_cell(found.get(task)) for found in held.values()),
        ]
        for task in tasks
    ]
    return Rates(
        figure,
        Table(["task", *by_task, *held], rows, total="all" in tasks),
        about=f"{ABOUT} {ABOUT_EXPERT}" if held else _NOT_KNOWN,
    )


def _estimates(shares: Mapping[str, Sequence[float]], tasks: Sequence[str]) -> dict[str, Estimate]:
    """Of every task that has shares, and over all where each task has."""
    known = {task: shares[task] for task in tasks if shares.get(task)}
    if len(known) == len([task for task in tasks if task != ALL_TASKS]):
        known[ALL_TASKS] = [share for each in known.values() for share in each]
    return {task: share_estimate(known[task]) for task in tasks if task in known}


def _tasks(rollouts: Rollouts) -> list[TaskSuccess]:
    return [*rollouts.tasks, rollouts.overall] if len(rollouts.tasks) > 1 else list(rollouts.tasks)


def _success_cell(task: TaskSuccess | None) -> str:
    return "" if task is None else _counted(task.successes, task.episodes, task.ci)


def _baseline_cell(found: Estimate | None) -> str:
    return "" if found is None else f"{_percent(found.value)}  [{_interval(found.ci)}]"


def listening(runs: Sequence[RunSummary]) -> Table | None:
    """What swapping the instruction did to every run, a row a task; None where nothing was swapped."""
    rows = [
        [
            run.name,
            f"{probe.task}, {probe.split}",
            _counted(probe.followed, 2 * probe.pairs, probe.followed_ci),
            _counted(probe.changed, probe.pairs, probe.changed_ci),
        ]
        for run in runs
        for probe in run.swaps
    ]
    header = ["run", "task", "went to the named object", "swap changed the object"]
    return Table(header, rows) if rows else None


def retention(runs: Sequence[RunSummary]) -> Rates | None:
    """Accuracy per question type against the pretrained model and the blind baseline, if any; None without answers."""
    asked = {run.name: run.vqa for run in runs if run.vqa is not None}
    if not asked:
        return None
    first = next(iter(asked.values()))
    scores = {name: _scores(results) for name, results in asked.items()}
    kinds = [*first["per_type"], "all"]
    before = {kind: score["pretrained"] for kind, score in _scores(first).items() if score["pretrained"]}
    blind = {kind: score["blind"] for kind, score in _scores(first).items() if score["blind"] is not None}
    figure = rate_figure(
        kinds,
        {name: _rates(each) for name, each in scores.items()},
        reference=_rates(before) if before else None,
        ticks=("blind", blind) if blind else None,
        description="Accuracy per question type of every model, with 95 % intervals"
        + (", and a blind baseline" if blind else ""),
    )
    header = [
        "question type",
        "n",
        *(["blind"] if blind else []),
        *(["pretrained"] if before else []),
        *asked,
    ]
    rows = []
    for kind in kinds:
        row = [kind, str(_scores(first)[kind]["n"]), *([_percent(blind[kind])] if blind else [])]
        if before:
            row.append(_percent(before[kind]["accuracy"]) if kind in before else "")
        row += [_answer_cell(each.get(kind)) for each in scores.values()]
        rows.append(row)
    about = "Exact-match accuracy on questions about held-out scenes. " if blind else "Official accuracy. "
    about += "Blind is the most frequent answer to the same question in training. " if blind else ""
    return Rates(
        figure,
        Table(header, rows, total=True),
        about=f"{first['benchmark']}. {about}Brackets beside a run are the 95 % interval of its paired difference to "
        "the pretrained model, in points; of its own accuracy, in %, where nothing is compared.",
    )


def between(runs: Sequence[RunSummary]) -> Table | None:
    """What each run answers against those before it, paired by question; None where no two were asked the same."""
    asked = {run.name: {line["id"]: line for line in run.answers} for run in runs if run.answers}
    names = list(asked)
    rows = [
        [
            name,
            *(_against(asked[name], asked[other]) for other in names[:place]),
            *[""] * (len(names) - place - 1),
        ]
        for place, name in enumerate(names)
    ][1:]
    known = any(cell for row in rows for cell in row[1:])
    return Table(["run", *(f"against {name}" for name in names[:-1])], rows) if known else None


def _against(answers: Mapping[str, Json], others: Mapping[str, Json]) -> str:
    """The paired difference in points; empty if these are answers to other questions."""
    if answers.keys() != others.keys():
        return ""
    ours = [_right(line) for line in answers.values()]
    theirs = [_right(others[of]) for of in answers]
    paired = compare_paired(ours, theirs, [line.get("scene", of) for of, line in answers.items()])
    low, high = paired.ci
    return f"{_points(paired.difference)}  [{_points(low)} to {_points(high)}]"


def _right(line: Json) -> float:
    """How right the answer of a line is, from 0 to 1; lines of before say only whether it is."""
    return float(line["score"] if "score" in line else line["correct"])


def _scores(results: Json) -> dict[str, Json]:
    return {**results["per_type"], "all": results}


def _rates(scores: Mapping[str, Json]) -> dict[str, Point]:
    return {kind: Point(score["accuracy"], tuple(score["ci"])) for kind, score in scores.items()}


def _answer_cell(score: Json | None) -> str:
    if score is None:
        return ""
    if not score["pretrained"]:
        return f"{_percent(score['accuracy'])}  [{_interval(score['ci'])}]"
    low, high = score["pretrained"]["paired"]["ci"]
    return f"{_percent(score['accuracy'])}  [{_points(low)} to {_points(high)}]"


def charts(curves: Mapping[str, Curves]) -> list[Chart]:
    """A chart of every figure of `CURVES` that somebody logged; a figure that one did not log has no line there.

    Args:
        curves: name, of a run or of a protection -> its curves. The order fixes how each looks, in all charts.
    """
    found = []
    for figure, (heading, meaning, log) in CURVES.items():
        names = (figure, *(f"{kind}_{figure}" for kind in _KINDS))
        shown = {
            name: next(each[logged] for logged in names if logged in each)
            for name, each in curves.items()
            if any(logged in each for logged in names)
        }
        if shown:
            description = f"{heading} over training: {meaning}"
            drawn = curve_figure(shown, list(curves), log=log, description=description)
            found.append(Chart(heading, meaning, drawn))
    return found


def _counted(successes: int, n: int, ci: Sequence[float]) -> str:
    return f"{successes}/{n}  [{_interval(ci)}]"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _interval(ci: Sequence[float]) -> str:
    return f"{100 * ci[0]:.0f} to {100 * ci[1]:.0f} %"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")
