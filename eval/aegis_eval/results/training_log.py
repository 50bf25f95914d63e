"""Curves over training: parsed from what `lerobot-train` printed, kept as `metrics.jsonl`, a step a line.

An experiment parses a log once, when its training ends. Logs of other trainings are read as they are.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_jsonl, write_jsonl

METRICS = "metrics.jsonl"
"""Name of the file beside the output of a training."""
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_METER = re.compile(r"(\S+?):(\S+)")
_SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9}
_NAMES = {"grdn": "grad_norm"}
_POSITION = ("smpl", "ep", "epch")
_BEGUN = re.compile(r"# begun .* at step (\d+)")


@dataclass
class Curve:
    """One figure over training: `values[i]` at `steps[i]`, steps increasing."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def append(self, step: int, value: float) -> None:
        """Add a point; one at or before the last step (a resumed run) replaces what came after it."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)


Curves = dict[str, Curve]


def read_curves(path: Path | str) -> Curves:
    """Curves by name (`loss`, `grad_norm`, `lr`, `anchor_distance`, ...) from `metrics.jsonl` or a log.

    Raises:
        AegisError: the file cannot be read or holds no training figures.
    """
    path = Path(path)
    try:
        if path.suffix == ".jsonl":
            curves = _curves_of(read_jsonl(path))
        else:
            curves = parse_training_log(path.read_text(errors="replace"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise AegisError(
            f"{path} cannot be read as a training log ({one_line(error)}): name another file."
        ) from error
    if not curves:
        raise AegisError(
            f"{path} holds no training figures: give the output of lerobot-train, with `step:` and `loss:`."
        )
    return curves


def write_metrics(curves: Curves, path: Path) -> None:
    """Write `metrics.jsonl`: the figures of a step on a line, with the number of the `step`."""
    by_step: dict[int, dict[str, float]] = {}
    for name, curve in curves.items():
        for step, value in zip(curve.steps, curve.values, strict=True):
            by_step.setdefault(step, {})[name] = value
    write_jsonl(path, ({"step": step, **by_step[step]} for step in sorted(by_step)))


def _curves_of(steps: Iterable[Mapping[str, float]]) -> Curves:
    curves: Curves = {}
    for figures in steps:
        step = int(figures["step"])
        for name, value in figures.items():
            if name != "step":
                curves.setdefault(name, Curve()).append(step, value)
    return curves


def parse_training_log(text: str) -> Curves:
    """Curves from the lines in which LeRobot prints its meters.

    LeRobot rounds steps from 1,000 on ("step:1K"): these are counted on by the spacing of the exact ones.
    Values are averages since the line before, with three decimals, as printed. Where a resumed run appended to the log
    of an experiment, a line of `aegis_eval.experiments.stage` says at which step; other logs of that kind are
    only right up to step 1,000, since rounded steps do not say where they went on.
    """
    curves: Curves = {}
    previous = spacing = 0
    for line in re.split(r"[\r\n]+", _ANSI.sub("", text)):
        if begun := _BEGUN.match(line):
            step = int(begun.group(1))
            previous = (
                step - step % spacing if spacing else step
            )  # the next line is at a multiple of the spacing
            continue
        start = line.find("step:")
        if start < 0 or "loss:" not in line:
            continue
        meters = dict(_METER.findall(line[start:]))
        printed = meters.pop("step")
        exact = printed.isdigit()
        step = int(printed) if exact else _full_step(printed, previous + spacing)
        if exact:
            spacing = step - previous if step > previous else spacing
        previous = step
        for name, value in meters.items():
            if name not in _POSITION and (number := _number(value)) is not None:
                curves.setdefault(_name(name), Curve()).append(step, number)
    return curves


def _name(meter: str) -> str:
    return _NAMES.get(meter, meter)


def _full_step(printed: str, expected: int) -> int:
    """The step behind a rounded one: the expected one if it rounds to what was printed."""
    unit = _SUFFIXES.get(printed[-1], 1.0)
    rounded = float(printed[:-1]) * unit
    return expected if abs(expected - rounded) <= unit / 2 else int(rounded)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
