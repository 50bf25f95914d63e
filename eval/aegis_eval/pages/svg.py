"""The report's figures as inline SVG that follows the page's colours, light or dark.

Matplotlib draws with stand-in colours; `_themed` turns each into a CSS variable of the page.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import LogLocator, NullFormatter

from aegis_eval.pages.html import render
from aegis_eval.results.training_log import Curve
from aegis_eval.statistics.intervals import Interval

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0404{index:02x}" for index in range(1, 11))
"""Stand-ins for `--series-0` ..., one a run; `MUTED` is for the pretrained model and the blind baseline."""

_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid"} | {
    color: f"--series-{index}" for index, color in enumerate(SERIES)
}
_LINES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p")
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_NOTE: dict[str, Any] = {"color": MUTED, "fontsize": 8, "textcoords": "offset points", "xytext": (3, 3)}
_WIDTH = 4.6
"""Inches; narrow enough to be read on a phone without shrinking."""


@dataclass(frozen=True)
class Point:
    """A rate with its interval, both in [0, 1]."""

    rate: float
    ci: Interval


def rate_figure(
    rows: Sequence[str],
    series: Mapping[str, Mapping[str, Point]],
    *,
    reference: Mapping[str, Point] | None = None,
    ticks: tuple[str, Mapping[str, float]] | None = None,
    description: str,
) -> Markup:
    """Rates in per cent, one row a task or question type, one dot with an interval a run.

    Args:
        rows: names, from top to bottom.
        series: run -> row -> point; rows a run lacks stay empty.
        reference: the pretrained model's points.
        ticks: the name of something to compare with (a model that cannot see), and in which rows it would be where.
        description: what a screen reader says.
    """
    names = [*(["pretrained"] if reference else []), *series]
    figure, axes = _axes(0.75 + len(rows) * (0.14 + 0.13 * len(names)))
    for index, name in enumerate(names):
        points = reference if reference and index == 0 else series[name]
        color, marker = _look(index - bool(reference))
        offset = (index - (len(names) - 1) / 2) * 0.72 / max(len(names), 2)
        places = [(row + offset, points[label]) for row, label in enumerate(rows) if label in points]
        axes.errorbar(
            [100 * point.rate for _, point in places],
            [place for place, _ in places],
            xerr=_spans([point for _, point in places]),
            fmt=marker,
            color=color,
            markersize=5,
            elinewidth=1.6,
            label=name,
        )
    if ticks:
        name, rates = ticks
        marks = [(row, rates[label]) for row, label in enumerate(rows) if label in rates]
        axes.vlines(
            [100 * rate for _, rate in marks],
            [row - 0.4 for row, _ in marks],
            [row + 0.4 for row, _ in marks],
            color=MUTED,
            linestyle=(0, (2, 2)),
            linewidth=1.2,
            label=name,
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_xlim(-2, 102)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("%, with 95 % intervals")
    _legend(axes, figure)
    return _svg(figure, description)


def scatter_figure(
    series: Mapping[str, Sequence[tuple[Point, Point]]],
    *,
    lines: Mapping[str, tuple[float | None, float | None]],
    paths: Mapping[str, Sequence[Sequence[tuple[float, float]]]] | None = None,
    labels: tuple[str, str],
    description: str,
) -> Markup:
    """Two rates in per cent against each other, one dot with two intervals a run.

    Args:
        series: protection -> (across, up) of each of its runs.
        lines: what a reference is called -> where its line stands, across or up or both.
        paths: protection -> lines from (across, up) to (across, up), the first solid, the second dotted.
        labels: of the axes.
        description: what a screen reader says.
    """
    figure, axes = _axes(3.6)
    for name, (across, up) in lines.items():
        if across is not None:
            axes.axvline(100 * across, color=MUTED, linestyle=(0, (4, 2)), linewidth=1)
            axes.annotate(
                name, (100 * across, 0.02), xycoords=("data", "axes fraction"), rotation=90, **_NOTE
            )
        if up is not None:
            axes.axhline(100 * up, color=MUTED, linestyle=(0, (4, 2)), linewidth=1)
            axes.annotate(name, (0.02, 100 * up), xycoords=("axes fraction", "data"), **_NOTE)
    for index, (name, points) in enumerate(series.items()):
        color, marker = _look(index)
        axes.errorbar(
            [100 * across.rate for across, _ in points],
            [100 * up.rate for _, up in points],
            xerr=_spans([across for across, _ in points]),
            yerr=_spans([up for _, up in points]),
            fmt=marker,
            color=color,
            markersize=6,
            elinewidth=0.8,
            label=name,
        )
        for path, line in zip((paths or {}).get(name, ()), ("-", (0, (1, 1.2))), strict=False):
            axes.plot(
                [100 * across for across, _ in path],
                [100 * up for _, up in path],
                color=color,
                linestyle=line,
                linewidth=1.2,
                marker=marker,
                markersize=2.5,
            )
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    _legend(axes, figure)
    return _svg(figure, description)


def curve_figure(
    curves: Mapping[str, Curve], runs: Sequence[str], *, log: bool = False, description: str
) -> Markup:
    """One training figure over steps, a line a run; `runs` are all runs of the page, which fix how each looks."""
    figure, axes = _axes(2.5, width=3.8)
    for name, curve in curves.items():
        index = runs.index(name)
        color, _ = _look(index)
        line = _LINES[index % len(_LINES)]
        axes.plot(curve.steps, curve.values, color=color, linestyle=line, linewidth=1.6, label=name)
    if log and all(value > 0 for curve in curves.values() for value in curve.values):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("training step")
    axes.margins(x=0.02)
    _legend(axes, figure)
    ends = (f"{name} from {curve.values[0]:.3g} to {curve.values[-1]:.3g}" for name, curve in curves.items())
    return _svg(figure, f"{description}; {', '.join(ends)}")


def _spans(points: Sequence[Point]) -> list[list[float]]:
    """How far the intervals reach down and up, in per cent, as error bars want it."""
    return [
        [100 * max(0.0, point.rate - point.ci[0]) for point in points],
        [100 * max(0.0, point.ci[1] - point.rate) for point in points],
    ]


def _axes(height: float, width: float = _WIDTH) -> tuple[Figure, Axes]:
    with context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        return figure, figure.add_subplot()


def _look(index: int) -> tuple[str, str]:
    if index < 0:
        return MUTED, "x"
    return SERIES[index % len(SERIES)], _MARKERS[index % len(_MARKERS)]


def _legend(axes: Axes, figure: Figure) -> None:
    handles, _ = axes.get_legend_handles_labels()
    with context(_STYLE):
        figure.legend(handles=handles, loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.2)


def _svg(figure: Figure, description: str) -> Markup:
    """The figure in the page's colours, with ids that are its own; `description` is what a screen reader says."""
    buffer = io.StringIO()
    with context(_STYLE | {"svg.hashsalt": description}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawn = re.search(r'<svg [^>]*viewBox="([^"]*)"[^>]*>(.*)</svg>', buffer.getvalue(), flags=re.DOTALL)
    assert drawn is not None
    view_box, drawing = drawn.groups()
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    prefix = re.sub(r"\W+", "-", description.lower())[:60]
    drawing = re.sub(r'(id="|href="#|url\(#)', rf"\1{prefix}-", drawing)
    shown = render(
        "figure.jinja", view_box=view_box, description=description, drawing=Markup(_themed(drawing))
    )
    return Markup(shown)


def _themed(drawing: str) -> str:
    for color, variable in _VARIABLES.items():
        drawing = drawing.replace(color, f"var({variable})")
    # Presentation attributes cannot hold CSS variables; matplotlib writes colours into `style`, bar a few.
    return re.sub(r'(fill|stroke)="(var\([^)]*\))"', r'style="\1: \2"', drawing)
