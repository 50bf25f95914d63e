"""Experiments as commands: a stage is one command that is done when its result exists, a job is stages in a row.

Everything an experiment does it does through the commands a user would type, each in a process of its own with its
output in a log. Given again, it runs what has not finished; a training goes on from its last checkpoint. What runs
many jobs is `aegis_eval.experiments.launchers`.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aegis_eval.experiments.forked_commands import ForkedCommand, end_with_parent
from aegis_eval.results.provenance import surroundings
from aegis_eval.results.training_log import parse_training_log, write_metrics
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import writing
from aegis_policy.support.json_files import read_json, write_json

_TRAINING = "lerobot-train"


@dataclass(frozen=True)
class Stage:
    """One command of an experiment.

    Attributes:
        name: of its log.
        title: what a reader is told.
        result: it is done when this is there, whole.
        command: program of this environment, and flags. What an interrupted run left under its `--output_dir` is
            removed, unless it is a training that saved a checkpoint.
        cost: seconds it may take (`aegis_eval.experiments.costs`): progress is counted in them.
        read: what makes plain data of the result, or of `metrics`, where that is to be kept.
        metrics: of a training, where the figures in its log go when it ends.
        limit: seconds after which it is ended, and done all the same, all its parts together; its result is then its
            own record (`NAME.json` beside its log).
        spare: files and folders that nothing reads once it is done; they are removed then.
    """

    name: str
    title: str
    result: Path
    command: list[str]
    cost: float = 1.0
    read: Callable[[Path], Any] | None = None
    metrics: Path | None = None
    limit: float | None = None
    spare: tuple[Path, ...] = ()

    @property
    def done(self) -> bool:
        """Whether its result is there; LeRobot writes JSON in its place, so half of it may be."""
        if self.result.suffix != ".json":
            return self.result.exists()
        try:
            read_json(self.result)
        except (OSError, ValueError):
            return False
        return True

    def record(self, logs: Path) -> dict[str, Any]:
        """What ran where and how long; as much as its log tells if the experiment was killed before it noted that."""
        try:
            return read_json(logs / f"{self.name}.json")
        except FileNotFoundError:
            log = logs / f"{self.name}.log"
            return {"command": self.command, "seconds": _seconds_so_far(log)} if log.is_file() else {}

    def measured(self, logs: Path) -> Any:
        """What was found, as plain data; figures that only the log in this folder has are written first.

        Raises:
            AegisError: the result is not what the command writes.
        """
        assert self.read is not None
        if self.metrics is not None and not self.metrics.exists():
            self.write_metrics(logs)
        source = self.metrics or self.result
        try:
            return self.read(source)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise AegisError(
                f"{source} is not what {self.command[0]} writes ({type(error).__name__}: {error}): delete it and give "
                "the same command again."
            ) from error

    def write_metrics(self, logs: Path) -> None:
        """Parse the log of a training."""
        log = logs / f"{self.name}.log"
        if self.metrics is not None and log.is_file():
            write_metrics(parse_training_log(log.read_text(errors="replace")), self.metrics)


@dataclass(frozen=True)
class Job:
    """Stages in a row, independent of other jobs; their logs go to the folder `logs`."""

    name: str
    stages: Sequence[Stage]
    logs: Path

    @property
    def done(self) -> bool:
        return all(stage.done for stage in self.stages)


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

    def run(
        self,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str],
        limit: float | None = None,
    ) -> int | None:
        """Run to the end and return the exit status; output is appended to `log`.

        None after `limit` seconds, when it is ended.
        """
        with self._lock:
            self.require_running()
            # A fork is not waited for with a limit.
            forked = None if limit or not self._forked else ForkedCommand.start(command, log, environment)
            process = forked or self._spawn(command, log, environment)
            self._running.add(process)
        try:
            if isinstance(process, ForkedCommand):
                return process.wait()
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            return None
        except BaseException:
            process.terminate()
            raise
        finally:
            with self._lock:
                self._running.discard(process)

    def _spawn(
        self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]
    ) -> "subprocess.Popen[bytes]":
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
    """Run one stage and return its seconds; `NAME.json` beside its log says what ran where, how long, of which code.

    A training that goes on appends to its log, and its earlier parts count; a line says where each part began.

    Raises:
        AegisError: it failed, or did not make its result; names its log.
    """
    processes = processes or Processes()
    processes.require_running()
    logs.mkdir(parents=True, exist_ok=True)
    log, record = logs / f"{stage.name}.log", logs / f"{stage.name}.json"
    command, step = continued(stage.command)
    if command == stage.command:
        _clear(stage, log)
    before = _seconds_so_far(log)
    code = surroundings()
    with writing(log), log.open("a") as lines:
        lines.write(f"\n# begun {_now()} after {before:.1f} s at step {step}\n")
    started = time.monotonic()
    status = processes.run(
        [Path(sys.executable).with_name(command[0]), *command[1:]],
        log,
        {"HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"), **(environment or {})},
        None if stage.limit is None else max(1.0, stage.limit - before),
    )
    seconds = before + time.monotonic() - started
    in_time = status is not None
    if (in_time and status != 0) or not (stage.result == record or stage.done):
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise AegisError(
            f"{command[0]} ended with status {status} ({''.join(last)}): read {log} for the rest."
        )
    stage.write_metrics(logs)
    ran = {
        "command": stage.command,
        "seconds": round(seconds, 1),
        "host": platform.node(),
        "finished": _now(),
        **({"resumed_at_step": step} if step else {}),
        **({} if in_time else {"out_of_time": True}),
    }
    write_json(record, {**ran, **code})
    _remove(stage.spare)
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
        if not stage.done:
            run_stage(stage, job.logs, processes, environment=environment)
            finished(stage)


def _clear(stage: Stage, log: Path) -> None:
    """Remove what an interrupted run of the stage left behind, for it begins anew."""
    log.unlink(missing_ok=True)
    if stage.metrics is not None:
        stage.metrics.unlink(missing_ok=True)
    for flag in stage.command:
        if flag.startswith("--output_dir="):
            _remove([Path(flag.removeprefix("--output_dir="))])


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def continued(command: list[str]) -> tuple[list[str], int]:
    """The command that goes on with a training that saved a checkpoint, and its step; any other command, and 0."""
    folders = [flag.removeprefix("--output_dir=") for flag in command if flag.startswith("--output_dir=")]
    programs = [number for number, word in enumerate(command) if Path(word).name == _TRAINING]
    if not programs or not folders:
        return command, 0
    saved = _last_checkpoint(Path(folders[0]) / "checkpoints")
    if saved is None:
        return command, 0
    config = saved / "pretrained_model" / "train_config.json"
    step = int(read_json(saved / "training_state" / "training_step.json")["step"])
    return [*command[: programs[0] + 1], f"--config_path={config}", "--resume=true"], step


def _last_checkpoint(checkpoints: Path) -> Path | None:
    """The one that LeRobot calls `last`; it moves that link in two steps, and between them there is none."""
    last = checkpoints / "last"
    if (last / "pretrained_model" / "train_config.json").is_file():
        return last
    whole = sorted(checkpoints.glob("[0-9]*/training_state/scheduler_state.json"))  # what LeRobot writes last
    return whole[-1].parents[1] if whole else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds_so_far(log: Path) -> float:
    """What the parts of an interrupted stage took: until each last wrote to its log."""
    if not log.is_file():
        return 0.0
    begun = re.findall(r"^# begun (\S+) after (\S+) s", log.read_text(errors="replace"), re.M)
    if not begun:
        return 0.0
    when, before = begun[-1]
    return float(before) + max(0.0, log.stat().st_mtime - datetime.fromisoformat(when).timestamp())
