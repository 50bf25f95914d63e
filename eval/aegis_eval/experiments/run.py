"""One run of an experiment: a training and what is measured of it, with its folder, its stages and its result file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.results.run_file import Json, RunFile


@dataclass(frozen=True)
class Run:
    """One training and what is measured of it.

    Attributes:
        name: of its result file, and what the names of its stages may begin with.
        variant: name in `VARIANTS`.
        lr: learning rate of the backbone.
        seed: of the training.
        folder: holds everything about it.
        logs: of its stages.
        stages: the training, then what is measured.
    """

    name: str
    variant: str
    lr: float
    seed: int
    folder: Path
    logs: Path
    stages: Sequence[Stage]

    @property
    def job(self) -> Job:
        """All its stages in a row, under the name of its folder."""
        return Job(self.folder.name, self.stages, self.logs)

    def results(self, root: Path, setting: Mapping[str, Any]) -> RunFile:
        """What its finished stages found, and what is known of them.

        Args:
            root: of the experiment; its path is left out of the commands.
            setting: flags that all its runs have in common.

        Raises:
            AegisError: a result is not what its command writes.
        """
        done = [stage for stage in self.stages if stage.done]
        records = {self._kind(stage): _record(stage.record(self.logs), root) for stage in done}
        return RunFile(
            self.variant,
            self.lr,
            self.seed,
            folder=self.folder.name,
            flags=list(VARIANTS[self.variant].flags),
            setting=dict(setting),
            measured={
                self._kind(stage): stage.measured(self.logs) for stage in done if stage.read is not None
            },
            stages={kind: record for kind, record in sorted(records.items()) if record},
        )

    def _kind(self, stage: Stage) -> str:
        return stage.name.removeprefix(f"{self.name}-")


def _record(record: Json, root: Path) -> Json:
    """The record of a stage, if there is one, without what is the machine owner's alone.

    Paths in its command are those below the experiment's folder, else below the one that it was started in.
    """
    if not record:
        return {}
    command = [word.replace(f"{root}/", "").replace(f"{Path.cwd()}/", "") for word in record["command"]]
    return {"command": command} | {key: record[key] for key in record if key not in ("command", "host")}
