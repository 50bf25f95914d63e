"""What `gpu.sh` measures and at which size: parts of rows, each row a JSON file. It imports no torch and no LeRobot."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aegis_policy.support.json_files import read_json, write_json


@dataclass(frozen=True)
class Scale:
    """The size of everything.

    Attributes:
        vlm: the backbone's shape, which `_gpu_work` gives random weights.
        image_size: pixels of a side of each of the two cameras' pictures, and of the questions'.
        expert: flags of the policy.
        batch_sizes: of the training steps.
        samples: questions of the anchor's pass, `anchor_batch` at a time.
        rounds: chunks that are timed.
        backend: of torch.compile.
        matrix: rows and columns of the product that finds what the card reaches.
    """

    name: str
    device: str
    vlm: str
    image_size: int
    expert: Mapping[str, int]
    batch_sizes: tuple[int, ...]
    samples: int
    anchor_batch: int
    rounds: int
    backend: str
    matrix: int


FULL = Scale(
    "full",
    "cuda",
    "paligemma2-3b",
    224,
    {"expert_width": 1024, "expert_depth": 18, "expert_heads": 16},
    (8, 16),
    300,
    32,
    20,
    "inductor",
    8192,
)
TINY = Scale(
    "tiny",
    "cpu",
    "tiny",
    32,
    {"expert_width": 16, "expert_depth": 2, "expert_heads": 2},
    (1, 2),
    4,
    2,
    3,
    "aot_eager",  # what inductor makes C++ of, without the minute that a compiler takes for it
    128,
)


class Row(NamedTuple):
    """One measurement, by the name of its file; `batch_size` and `checkpointing` are of training steps."""

    name: str
    batch_size: int = 0
    checkpointing: bool = False


STEP_PARTS = {
    "step-none": "none",
    "step-aegis": "aegis subspace",
    "step-gaussian": "aegis gaussian",
    "step-lora": "lora",
}
"""Part -> its side of `step_cost.SIDES`. `aegis subspace` is what `--policy.protection=aegis` is by default."""
TWO_PROCESSES = "two-processes"
PARTS = ("environment", *STEP_PARTS, "chunk", "anchor", TWO_PROCESSES)
"""In the order in which they are measured."""


def rows_of(part: str, scale: Scale) -> list[Row]:
    """The rows of a part, the first first."""
    if part in STEP_PARTS:
        return [
            Row(f"{part}-{size}{'-checkpointing' * checkpointing}", size, checkpointing)
            for size in scale.batch_sizes
            for checkpointing in (False, True)
        ]
    if part == "chunk":
        return [Row("chunk-eager"), Row("chunk-compiled")]
    if part == TWO_PROCESSES:
        return [Row(f"{part}-{name}", scale.batch_sizes[0]) for name in ("none", "aegis")]
    return [Row(part)]


class Kept:
    """The rows of a folder: `rows/NAME.json` of those that were measured, `rows/NAME.failed` of those that failed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "rows"

    def missing(self, rows: Iterable[Row]) -> list[Row]:
        return [row for row in rows if not self._path(row).is_file()]

    def read(self, row: Row) -> dict[str, Any] | None:
        """The figures of a row; None if it is missing."""
        path = self._path(row)
        figures: dict[str, Any] | None = read_json(path) if path.is_file() else None
        return figures

    def keep(self, row: Row, figures: Mapping[str, Any]) -> None:
        write_json(self._path(row), figures)
        self._path(row, "failed").unlink(missing_ok=True)

    def fail(self, row: Row, reason: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._path(row, "failed").write_text(reason)

    def why_missing(self, row: Row) -> str:
        path = self._path(row, "failed")
        return path.read_text() if path.is_file() else "not reached in time"

    def _path(self, row: Row, ending: str = "json") -> Path:
        return self._folder / f"{row.name}.{ending}"


def joined(kept: Kept, scale: Scale) -> dict[str, Any]:
    """All rows by part, what a protection's step takes over one of `none`, and what was left out, with the reason."""
    found = {part: {row.name: kept.read(row) for row in rows_of(part, scale)} for part in PARTS}
    measured = {part: {name: x for name, x in rows.items() if x is not None} for part, rows in found.items()}
    environment = measured.pop("environment").get("environment", {})
    return {
        "scale": scale.name,
        "provenance": environment.pop("provenance", None),
        "environment": environment,
        **measured,
        "seconds_over_none": _over_none(measured),
        "left_out": {
            row.name: kept.why_missing(row) for part in PARTS for row in kept.missing(rows_of(part, scale))
        },
    }


def _over_none(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Row of a protection -> its seconds over those of `none` with the same batch."""
    ratios = {}
    for part in STEP_PARTS:
        for name, figures in measured[part].items():
            none = measured["step-none"].get(name.replace(part, "step-none"), {})
            if "seconds" in figures and "seconds" in none:
                ratios[name] = figures["seconds"] / none["seconds"]
    return ratios
