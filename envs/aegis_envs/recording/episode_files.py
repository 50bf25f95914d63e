"""Files of finished demonstrations: arrays and a JSON description in one `.npz`, whole or not there at all."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def save(path: Path, described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write `path`; `described` must be JSON-able."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with beside.open("wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(described)), **arrays)  # type: ignore[arg-type]
    beside.replace(path)


def load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The description and the arrays that `save` wrote."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    return json.loads(str(arrays.pop("meta"))), arrays
