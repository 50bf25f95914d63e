"""A pass over many samples that may be interrupted: its state in a file, from which the same pass goes on."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aegis_policy.support.files import atomic_write

SAVE_SECONDS = 60.0
"""How much of an interrupted pass may have to be done again."""


class Continues(Protocol):
    """What has a state, of flat tensors, to go on from."""

    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


class UnfinishedPass:
    """The file of a pass that is not finished.

    Args:
        path: of the file.
        identity: what makes it this pass and no other: model, samples, options, versions. The state of another one in
            the file is left alone until this one has something to save.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self._saved = time.monotonic()

    def restore(self, gathering: Continues) -> tuple[int, int]:
        """How many batches and samples of this very pass are in `gathering` now; 0 if none were kept."""
        try:
            with safe_open(self.path, framework="pt") as file:
                noted = file.metadata() or {}
                if noted.get("pass") != self._identity:
                    return 0, 0
                gathering.load_state({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0, 0
        return int(noted["batches"]), int(noted["samples"])

    def save(self, gathering: Continues, batches: int, samples: int, *, at_once: bool = False) -> None:
        """Keep the state, if the last time was a while ago, or at once."""
        if not at_once and time.monotonic() - self._saved < SAVE_SECONDS:
            return
        state = {name: x.cpu().contiguous().clone() for name, x in gathering.state().items()}
        with atomic_write(self.path) as beside:
            save_file(
                state, beside, {"pass": self._identity, "batches": str(batches), "samples": str(samples)}
            )
        self._saved = time.monotonic()

    def discard(self) -> None:
        """Forget it: the pass is finished."""
        self.path.unlink(missing_ok=True)
