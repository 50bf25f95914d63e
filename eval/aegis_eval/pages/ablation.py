"""Table and figures of an ablation, from its JSON alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import number, rate
from aegis_policy.support.files import atomic_write

_HEADER = ("variant", "VQA accuracy %", "retained %", "action error", "gain kept %")

_COLOURS = ("#1b6ca8", "#c8553d", "#3f7d20", "#7a4fa3", "#b8860b", "#20807a", "#b03a6f", "#555555")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_PROBE = "vqa_accuracy"
_FAR_BELOW = 0.2
"""Below what `none` retains: what lies there would squeeze everything else."""


def write_page(results: Mapping[str, Any], folder: Path) -> Path:
    """Write `ablation.md`, `frontier.png` and, if the backbone was probed in training, `retention.png`.

    Args:
        results: what `aegis-ablate` wrote to `ablation.json`.
        folder: where to.

    Returns:
        The table's file.
    """
    table = folder / "ablation.md"
    written = [table]
    with atomic_write(table) as beside:
        beside.write_text(format_table(results["frontier"]))
    written.append(_save(_frontier(results["frontier"]), folder / "frontier.png"))
    if (figure := _retention(results)) is not None:
        written.append(_save(figure, folder / "retention.png"))
    print(f"{format_table(results['frontier'])}\nwrote {', '.join(str(path) for path in written)}")
    return table


def format_table(frontier: Mapping[str, Any]) -> str:
    """Markdown, a row a variant: accuracy, retained share, action error, share of the gain; with 95 % intervals.

    Behind these, if there are any: retained share of questions without pictures, KL on running text, a column a file.
    """
    variants = frontier["variants"]
    questions, running = (list(next(iter(variants.values()))[key]) for key in ("text_retained", "text_kl"))
    header = [*_HEADER, *(f"{name}: retained %" for name in questions), *(f"{name}: KL" for name in running)]
    rows = [["(pretrained)", f"{100 * frontier['pretrained']:.1f}", "100"]]
    for name, row in variants.items():
        shares = [rate(_estimate(row[key])) for key in ("accuracy", "retained")]
        kept = rate(_estimate(row["gain_kept"]), 0) if row["gain_kept"] else ""
        texts = [rate(_estimate(row["text_retained"][each])) for each in questions]
        texts += [number(_estimate(row["text_kl"][each]), 4) for each in running]
        rows.append([name, *shares, number(_estimate(row["action_error"])), kept, *texts])
    one_seed = all(len(row["by_seed"]) == 1 for row in variants.values())
    over = "scenes and episodes, one seed" if one_seed else "seeds, scenes, episodes"
    return (
        f"{Table(header, rows).markdown()}\n\n"
        f"`stop_gradient` errs more than `none` by {number(_estimate(frontier['gain']))}; "
        f"brackets: 95 % intervals over {over}.\n"
    )


def _estimate(written: Mapping[str, Any]) -> Estimate:
    low, high = written["ci"]
    return Estimate(written["value"], (low, high))


def _frontier(frontier: Mapping[str, Any]) -> Figure:
    """Retention against action error: up and to the left is better. What lies far below is named at its edge."""
    axes = _axes("action error on held-out demonstrations", "VQA accuracy retained, %")
    least = frontier["variants"]["none"]["retained"]["value"] - _FAR_BELOW
    for index, (name, row) in enumerate(frontier["variants"].items()):
        x, y = row["action_error"], row["retained"]
        if y["value"] < least:
            note = f"not shown: {name}, {100 * y['value']:.0f} % at {x['value']:.2f}"
            axes.plot([], [], linestyle="", label=note, markersize=6, **_style(index))
            continue
        axes.errorbar(
            x["value"],
            100 * y["value"],
            xerr=[[max(0.0, x["value"] - x["ci"][0])], [max(0.0, x["ci"][1] - x["value"])]],
            yerr=[[max(0.0, 100 * (y["value"] - y["ci"][0]))], [max(0.0, 100 * (y["ci"][1] - y["value"]))]],
            label=name,
            linewidth=0.8,
            markersize=6,
            **_style(index),
        )
    axes.axhline(100, color="#888888", linewidth=0.8, linestyle=":")
    axes.axhline(98.5, color="#888888", linewidth=0.8, linestyle="--")
    _legend(axes)
    return axes.figure  # type: ignore[return-value]


def _retention(results: Mapping[str, Any]) -> Figure | None:
    """Accuracy of the in-training probe over steps, mean over seeds."""
    curves: dict[str, list[Mapping[str, list[float]]]] = {}
    for run in results["runs"]:
        if _PROBE in run["curves"]:
            curves.setdefault(run["variant"], []).append(run["curves"][_PROBE])
    if not curves:
        return None
    axes = _axes("training step", "VQA accuracy of the probe, %")
    for index, (name, group) in enumerate(curves.items()):
        points = [_probed_at(curve, results["config"]["probe_freq"]) for curve in group]
        steps = sorted(set.intersection(*(set(each) for each in points)))
        values = [100 * float(np.mean([each[step] for each in points])) for step in steps]
        if values[-1] < 100 * results["frontier"]["variants"]["none"]["accuracy"]["value"] - 100 * _FAR_BELOW:
            axes.plot(
                [], [], linestyle="", label=f"not shown: {name}, {values[-1]:.0f} % at last", **_style(index)
            )
            continue
        axes.plot(steps, values, label=name, linewidth=1.2, markersize=4, **_style(index))
    _legend(axes)
    return axes.figure  # type: ignore[return-value]


def _probed_at(curve: Mapping[str, list[float]], every: int) -> dict[int, float]:
    """Steps of training that the weights had had -> accuracy; the log repeats each until the next."""
    found: dict[int, float] = {}
    for step, value in zip(curve["steps"], curve["values"], strict=True):
        found.setdefault((int(step) - 1) // every * every, value)
    return found


def _axes(x_label: str, y_label: str) -> Axes:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(linewidth=0.4, color="#dddddd")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _style(index: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[index % len(_COLOURS)],
        "marker": _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)],
    }


def _legend(axes: Axes) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi=130)
    return path
