"""Experiments as commands: a stage is one command that is done when its result exists, a job is stages in a row.

Everything an experiment does it does through the commands a user would type, each in a process of its own with its
output in a log. Given again, it runs what has not finished; a training goes on from its last checkpoint. What runs
many jobs is `aegis_eval.experiments.launchers`.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from aegis_eval.experiments.forked_commands import ForkedCommand, end_with_parent
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write


@dataclass(frozen=True)
class Stage:
    """One command of an experiment.

    Attributes:
        name: of its log.
        title: what a reader is told.
        result: it is done when this exists.
        command: program of this environment, and flags. What an interrupted run left under its `--output_dir` is
            removed, unless it is a training that saved a checkpoint.
        cost: how long it takes, in the unit of the other stages: progress is counted in it.
    """

    name: str
    title: str
    result: Path
    command: list[str]
    cost: float = 1.0


@dataclass(frozen=True)
class Job:
    """Stages in a row, independent of other jobs; their logs go to the folder `logs`."""

    name: str
    stages: Sequence[Stage]
    logs: Path

    @property
    def done(self) -> bool:
        return all(stage.result.exists() for stage in self.stages)


class Processes:
    """The commands that are running, so that they end when the experiment does.

    Args:
        forked: start Python commands of this environment from a process that has imported what they import, which
            saves each of them the seconds that takes; see `aegis_eval.experiments.forked_commands`.
    """

    def __init__(self, *, forked: bool = False) -> None:
        self._forked = forked
        self._running: set[subprocess.Popen[bytes] | ForkedCommand] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> int:
        """Run to the end and return the exit status; output is appended to `log`."""
        with self._lock:
            self.require_running()
            process = self._start(command, log, environment)
            self._running.add(process)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def _start(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes] | ForkedCommand":
        if self._forked and (found := ForkedCommand.start(command, log, environment)) is not None:
            return found
        with log.open("ab") as output:
            return subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                preexec_fn=end_with_parent,
            )

    def require_running(self) -> None:
        """Raises InterruptedError after `stop`."""
        if self._stopped:
            raise InterruptedError("the experiment was stopped")

    def stop(self) -> None:
        """End what is running and start nothing more."""
        self._stopped = True  # before the lock, which a command that starts may hold for seconds
        with self._lock:
            for process in self._running:
                process.terminate()


def run_stage(
    stage: Stage,
    logs: Path,
    processes: Processes | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run one stage and return its seconds; `NAME.json` beside its log says what ran where and for how long.

    A training that goes on appends to its log, and its earlier parts count; a line says where each part began.

    Raises:
        AegisError: it failed, or did not make its result; names its log.
    """
    processes = processes or Processes()
    processes.require_running()
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{stage.name}.log"
    command = _continued(stage.command)
    if command == stage.command:
        log.unlink(missing_ok=True)
        for flag in stage.command:
            if flag.startswith("--output_dir="):
                shutil.rmtree(flag.removeprefix("--output_dir="), ignore_errors=True)
    continued = command != stage.command
    before = _seconds_so_far(log) if continued else 0.0
    with log.open("a") as lines:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines.write(
            f"\n# begun {now} after {before:.1f} s at step {_saved_step(command) if continued else 0}\n"
        )
    started = time.monotonic()
    program = Path(sys.executable).with_name(command[0])
    status = processes.run(
        [program, *command[1:]],
        log,
        {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), **(environment or {})},
    )
    if status != 0 or not stage.result.exists():
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise AegisError(
            f"{command[0]} ended with status {status} ({''.join(last)}): read {log} for the rest."
        )
    seconds = before + time.monotonic() - started
    record = {
        "command": [command[0], *command[1:]],
        "seconds": round(seconds, 1),
        "host": platform.node(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with atomic_write(logs / f"{stage.name}.json") as beside:
        beside.write_text(json.dumps(record, indent=2) + "\n")
    return seconds


def run_job(
    job: Job,
    processes: Processes | None = None,
    environment: Mapping[str, str] | None = None,
    finished: Callable[[Stage], object] = lambda stage: None,
) -> None:
    """Run the stages of a job that have no result yet, one after the other.

    Raises:
        AegisError: one failed; the rest is left.
    """
    for stage in job.stages:
        if not stage.result.exists():
            run_stage(stage, job.logs, processes, environment=environment)
            finished(stage)


def _continued(command: list[str]) -> list[str]:
    """The command that goes on with a training that saved a checkpoint; any other command as it is."""
    folders = [flag.removeprefix("--output_dir=") for flag in command if flag.startswith("--output_dir=")]
    if command[0] != "lerobot-train" or not folders:
        return command
    config = Path(folders[0]) / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    return [command[0], f"--config_path={config}", "--resume=true"] if config.is_file() else command


def _saved_step(command: Sequence[str]) -> int:
    """Of a training that is resumed."""
    config = Path(command[1].removeprefix("--config_path="))
    state = config.parents[1] / "training_state" / "training_step.json"
    return int(json.loads(state.read_text())["step"])


def _seconds_so_far(log: Path) -> float:
    """What the parts of an interrupted stage took: until each last wrote to its log."""
    if not log.is_file():
        return 0.0
    begun = re.findall(r"^# begun (\S+) after (\S+) s", log.read_text(errors="replace"), re.M)
    if not begun:
        return 0.0
    when, before = begun[-1]
    return float(before) + max(0.0, log.stat().st_mtime - datetime.fromisoformat(when).timestamp())
