"""Files of finished demonstrations, and the folder in which they wait for the dataset: whole, or not there at all.

The folder is what makes a recording resumable. It holds finished episodes only, and what they depend on.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write
from aegis_policy.support.json_files import read_json, write_json

_RECIPE_FILE = "recipe.json"


def save(path: Path, described: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Write arrays and a JSON-able description as one `.npz`."""
    with atomic_write(path) as beside, beside.open("wb") as file:
        np.savez_compressed(file, meta=np.array(json.dumps(described)), **arrays)  # type: ignore[arg-type]


def load(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the description and the arrays that `save` wrote."""
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    return json.loads(str(arrays.pop("meta"))), arrays


class EpisodeFolder:
    """The finished episodes of one recording, a file a slot, beside the `root` of the dataset they are for."""

    def __init__(self, root: Path) -> None:
        self.path = root.parent / f".{root.name}.recording"

    def claim(self, recipe: dict[str, Any]) -> None:
        """Create the folder, or see that the one there holds episodes of `recipe`.

        Raises:
            AegisError: an interrupted recording was made with another recipe.
        """
        file = self.path / _RECIPE_FILE
        if not file.exists():
            write_json(file, recipe)
            return
        found = read_json(file)
        if other := [name for name, value in recipe.items() if found.get(name) != value]:
            raise AegisError(
                f"{self.path} holds an interrupted recording with other {', '.join(other)}: "
                "run that command again to finish it, or remove the folder."
            )

    def file(self, slot: int) -> Path:
        """Where the episode of a slot is, once it is finished."""
        return self.path / f"episode_{slot:06d}.npz"

    def missing(self, episodes: int) -> list[int]:
        """Slots from 0 to `episodes` - 1 that are not finished."""
        return [slot for slot in range(episodes) if not self.file(slot).exists()]

    def remove(self) -> None:
        """Delete the folder with all its episodes."""
        shutil.rmtree(self.path, ignore_errors=True)
