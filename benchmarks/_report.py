"""How the benchmarks print their figures and keep them."""

import os
import time
from pathlib import Path
from typing import Any

import torch

from aegis_eval.results.provenance import provenance
from aegis_policy.support.json_files import write_json

_STARTED = time.perf_counter()


def report(figures: dict[str, Any], json_path: Path | None) -> None:
    """Print the figures, and `keep` them."""
    for key, value in figures.items():
        print(f"{key:<40} {value:.3f}" if isinstance(value, float) else f"{key:<40} {value}")
    keep(figures, json_path)


def keep(figures: dict[str, Any], json_path: Path | None) -> None:
    """Write the figures, if a path is given, with the command and the machine they were measured on."""
    if json_path is not None:
        described = provenance(
            torch.initial_seed(),
            time.perf_counter() - _STARTED,
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0],
        )
        write_json(json_path, {**figures, "provenance": described})
        print(f"wrote {json_path}")
