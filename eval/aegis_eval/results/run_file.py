"""The result file of one run: what was measured of it, under which setting, by which code, on which machine.

Every run of an experiment has one file, put together from what its stages left; tables and pages are made of such
files. An old file is never edited: whoever measures something new adds a new one.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json, write_json

Json = dict[str, Any]
_KINDS: dict[str, Any] = {
    "lr": (int, float),
    "seed": int,
    "flags": list,
    **dict.fromkeys(("setting", "measured", "stages"), dict),
}
"""What fields hold that are no texts."""


@dataclass(frozen=True)
class RunFile:
    """One training and everything that was measured of it.

    Attributes:
        variant: name of how it was trained.
        lr: learning rate of the backbone.
        seed: of the training.
        folder: name of the run's folder; variants that are the same training share one.
        flags: what the variant adds to `lerobot-train`.
        setting: flags that all runs of the experiment have in common.
        measured: stage -> what it found, as `aegis_eval.results.measured` has it.
        stages: stage -> its command, seconds, commit, versions and hardware.
    """

    variant: str
    lr: float
    seed: int
    folder: str
    flags: list[str]
    setting: Json
    measured: Json
    stages: Json

    @classmethod
    def read(cls, path: Path) -> Self:
        """The file at `path`.

        Raises:
            AegisError: it is not the result file of a run.
        """
        try:
            found = read_json(path)
            run = cls(**{field.name: found[field.name] for field in fields(cls)})
            for field in fields(cls):
                if not isinstance(getattr(run, field.name), _KINDS.get(field.name, str)):
                    raise ValueError(f"{field.name} is {getattr(run, field.name)!r}")
            return run
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AegisError(
                f"{path} is not the result file of a run ({type(error).__name__}: {one_line(error)}): take one from "
                "the folder results/ of an experiment."
            ) from error

    def write(self, path: Path) -> None:
        """Write it as JSON, on one line."""
        write_json(path, asdict(self), indent=None)

    @property
    def seconds(self) -> dict[str, float]:
        """Stage -> how long it took."""
        return {name: record["seconds"] for name, record in self.stages.items()}
