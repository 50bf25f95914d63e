"""The page of a comparison: what was compared, what won, how sure that is, and what to look at.

Everything is computed from the raw runs of `comparison.json`; videos and answers are shown where the runs' folders
are at hand.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from aegis_envs.tabletop.env import seeded_episode
from aegis_eval.pages import comparison_table as tables
from aegis_eval.pages import html as page
from aegis_eval.pages.comparison_table import Json
from aegis_eval.pages.media import films_side_by_side, questions
from aegis_eval.pages.numbers import CURVES
from aegis_eval.pages.svg import Point, curve_figure, scatter_figure
from aegis_eval.results.comparison import ALL, ComparedRun, Comparison, Questions
from aegis_eval.results.run import RunSummary
from aegis_eval.results.training_log import Curve
from aegis_eval.statistics.intervals import accuracy_interval, wilson_interval
from aegis_eval.statistics.resampling import bits
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import change, p_value, rate
from aegis_policy.support.files import atomic_write

_BENCHMARKS = {"tabletop": "questions about scenes", "tabletop_robot": "questions about the robot's frames"}
COMPARISON_TITLE = "Robot skill and retained knowledge, by protection"


def write_comparison(
    results: Json,
    folder: Path,
    *,
    runs: Path | None = None,
    title: str = COMPARISON_TITLE,
) -> Path:
    """Write `report.html`, `comparison.md` and `summary.json`, print the table, and name the files.

    Args:
        results: what `aegis-compare` wrote to `comparison.json`.
        folder: where to.
        runs: the folder of the runs, whose videos and answers are shown.
        title: heading of the page.

    Returns:
        The page.
    """
    asked = {name: Questions(**each) for name, each in results["questions"].items()}
    order = list(results["protections"])
    everything = [ComparedRun(**run) for run in results["runs"]]
    everything.sort(key=lambda run: order.index(run.protection))
    lr = results["config"]["lr_backbone"]
    common = [run for run in everything if run.lr == lr]
    tuned = [run for run in everything if run.lr == results["tuned"].get(run.protection)]
    summaries = {"common": Comparison.of(common, asked)}
    if tuned:
        summaries["tuned"] = Comparison.of(tuned, asked)
    table = tables.markdown(results, summaries)
    written = [folder / name for name in ("report.html", "comparison.md", "summary.json")]
    body = f"<h1>{escape(title)}</h1>\n{_html(results, common, asked, summaries, runs)}"
    texts = (
        page.page(title, body),
        table,
        json.dumps({name: each.to_dict() for name, each in summaries.items()}, indent=1) + "\n",
    )
    for path, text in zip(written, texts, strict=True):
        with atomic_write(path) as beside:
            beside.write_text(text)
    print(f"{table}\nwrote {', '.join(str(path) for path in written)}")
    return written[0]


def _html(
    results: Json,
    runs: Sequence[ComparedRun],
    asked: Mapping[str, Questions],
    summaries: Mapping[str, Comparison],
    folder: Path | None,
) -> str:
    common = summaries["common"]
    parts = [
        f'<p class="soft">{escape(tables.what(results))}</p>',
        _conclusions(common),
        _also_tuned(summaries),
        f'<div class="card wide">{_scatter(results, runs, asked)}</div>',
        "<h2>All protections at the same learning rate</h2>",
        f'<p class="soft">{escape(_HOW)}</p>',
        page.table(tables.table(common)),
    ]
    if "tuned" in summaries:
        parts += ["<h2>Each at its own learning rate</h2>", f'<p class="soft">{escape(_TUNED)}</p>']
        parts += [_conclusions(summaries["tuned"])]
        parts += [page.table(tables.table(summaries["tuned"])), _tuning(results)]
    parts += [_tasks(common), *(_types(common, name) for name in asked), _curves(runs)]
    if folder is not None:
        parts += [films_side_by_side(_films(folder, runs), _told(results)), _questions(folder, runs)]
    described = {key: results[key] for key in ("provenance", "config", "protections")}
    parts.append(
        "<h2>Provenance</h2><details><summary>Command, commit, seeds, hardware, flags, time of every stage</summary>"
        f"<pre>{escape(json.dumps({**described, 'seconds': _seconds(runs)}, indent=2))}</pre></details>"
    )
    return "\n".join(part for part in parts if part)


_HOW = (
    "Brackets are 95 % intervals over seeds and episodes or scenes, resampled together for all protections. "
    "Differences to none are on the same initial states, those to the pretrained model on the same questions; the last "
    "column counts rollouts of all seeds as if they were of one (Wilson). With so few seeds, what lies just outside an "
    "interval is not yet a finding."
)
_TUNED = (
    "Chosen from the same grid on validation data: the rate with the best sum of success on new train scenes and share "
    "of validation questions still answered, one seed."
)


def _conclusions(comparison: Comparison) -> str:
    first, *rest = tables.sentences(comparison)
    listed = f"<ul>{''.join(f'<li>{_code(sentence)}</li>' for sentence in rest)}</ul>" if rest else ""
    return f'<p class="lead">{_code(first)}</p>{listed}'


def _also_tuned(summaries: Mapping[str, Comparison]) -> str:
    """What won where each had its own learning rate, and what ours kept there, so that nobody stops reading before."""
    if "tuned" not in summaries:
        return ""
    won, *known = tables.sentences(summaries["tuned"])
    said = " ".join([won, *known[-1:]])
    return f"<p>All that is at one learning rate. With each protection at its own: {_code(said)}</p>"


def _code(sentence: str) -> str:
    """Escaped, with `names` set as code."""
    pieces = escape(sentence).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def _scatter(results: Json, runs: Sequence[ComparedRun], asked: Mapping[str, Questions]) -> str:
    series: dict[str, list[tuple[Point, Point]]] = {}
    scenes = asked["tabletop"].scenes
    for run in runs:
        outcomes = run.outcomes("test", ALL)
        success = Point(
            outcomes.count("1") / len(outcomes), wilson_interval(outcomes.count("1"), len(outcomes))
        )
        correct = bits(run.answers["tabletop"])
        answers = Point(float(correct.mean()), accuracy_interval(correct > 0, scenes))
        series.setdefault(run.protection, []).append((success, answers))
    expert = "".join(results["expert"]["test"].values())
    pretrained = asked["tabletop"].pretrained
    return scatter_figure(
        series,
        lines={
            "expert": (expert.count("1") / len(expert), None),
            "pretrained": (None, pretrained.count("1") / len(pretrained)),
        },
        labels=("success on test scenes, %", "questions answered, %"),
        description=(
            "Success on test scenes against questions answered, one point a run with 95 % intervals; lines: the "
            "scripted expert and the pretrained model. "
            + "; ".join(
                f"{name}: " + ", ".join(f"{100 * x.rate:.0f} and {100 * y.rate:.0f}" for x, y in points)
                for name, points in series.items()
            )
        ),
    )


def _tuning(results: Json) -> str:
    rows = [
        [
            each["protection"],
            f"{each['lr']:g}",
            f"{100 * each['success']:.0f}",
            f"{100 * each['retained']:.1f}",
        ]
        for each in results["tuning"]
    ]
    table = page.table(
        Table(["protection", "backbone lr", "success, validation %", "answers retained %"], rows)
    )
    return f"<details><summary>What the rates were chosen by</summary>{table}</details>"


def _tasks(comparison: Comparison) -> str:
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
    ]
    table = page.table(Table(["protection", "split", "task", "success %", "against none"], rows))
    return f"<h2>Success by task</h2>{table}"


def _types(comparison: Comparison, benchmark: str) -> str:
    first = next(iter(comparison.protections.values())).answers[benchmark]
    header = ["question type", "n", "pretrained %", *comparison.protections]
    rows = []
    for kind, before in first.items():
        row = [kind, str(before.n), f"{100 * before.pretrained:.1f}"]
        for result in comparison.protections.values():
            of = result.answers[benchmark][kind]
            row.append(f"{100 * of.accuracy.value:.1f} ({change(of.change)}, p {p_value(of.p_value)})")
        rows.append(row)
    text = (
        "In parentheses: points against the pretrained model, and McNemar's p for these trainings, not corrected for "
        "the number of types and protections."
    )
    return (
        f"<h2>{escape(_BENCHMARKS.get(benchmark, benchmark).capitalize())}, by type</h2>"
        f'<p class="soft">{text}</p>{page.table(Table(header, rows, total=True))}'
    )


def _curves(runs: Sequence[ComparedRun]) -> str:
    names = list(dict.fromkeys(run.protection for run in runs))
    cards = []
    for key, (heading, label, log) in CURVES.items():
        means = {name: _mean_curve([run for run in runs if run.protection == name], key) for name in names}
        shown = {name: curve for name, curve in means.items() if curve.steps}
        if shown:
            figure = curve_figure(shown, names, log=log, description=f"{heading} over training: {label}")
            cards.append(f'<div class="card"><h3>{heading}</h3><p class="soft">{label}</p>{figure}</div>')
    text = '<p class="soft">Means over the seeds.</p>'
    return f'<h2>Over training</h2>{text}<div class="grid">{"".join(cards)}</div>' if cards else ""


def _mean_curve(runs: Sequence[ComparedRun], key: str) -> Curve:
    """Mean over runs of the steps that all of them logged."""
    logged = [run.curves[key] for run in runs if key in run.curves]
    curves = [dict(zip(curve["steps"], curve["values"], strict=True)) for curve in logged]
    if not curves:
        return Curve()
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return Curve(
        [int(step) for step in steps], [sum(curve[step] for curve in curves) / len(curves) for step in steps]
    )


def _films(folder: Path, runs: Sequence[ComparedRun]) -> dict[str, Path]:
    """Where the first seed's test rollouts of every protection lie."""
    return {run.protection: folder / run.folder / "rollouts-test" for run in _first_seed(runs)}


def _told(results: Json) -> Callable[[str, int], str]:
    """What a policy was told in each test rollout."""
    first = results["provenance"]["seed"]
    return lambda task, episode: seeded_episode(task, "test", first + episode).instruction


def _questions(folder: Path, runs: Sequence[ComparedRun]) -> str:
    asked = {run.protection: folder / run.folder / "vqa-tabletop" for run in _first_seed(runs)}
    return questions([RunSummary.read(name, vqa_dir=answers) for name, answers in asked.items()], 6)


def _first_seed(runs: Sequence[ComparedRun]) -> Iterable[ComparedRun]:
    first = min(run.seed for run in runs)
    return (run for run in runs if run.seed == first)


def _seconds(runs: Sequence[ComparedRun]) -> dict[str, dict[str, float]]:
    return {f"{run.protection}, lr {run.lr:g}, seed {run.seed}": run.seconds for run in runs}
