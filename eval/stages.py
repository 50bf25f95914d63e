"""Experiments as commands: a stage is one command that is done when its result exists, a job is stages in a row.

Everything an experiment does it does through the commands a user would type, each in a process of its own with its
output in a log. Given again, it runs what has not finished; a training goes on from its last checkpoint.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from aegis_policy.errors import AegisError


@dataclass(frozen=True)
class Stage:
    """One command of an experiment.

    Attributes:
        name: of its log.
        title: what a reader is told.
        result: it is done when this exists.
        command: program of this environment, and flags. What an interrupted run left under its `--output_dir` is
            removed, unless it is a training that saved a checkpoint.
    """

    name: str
    title: str
    result: Path
    command: list[str]


@dataclass(frozen=True)
class Job:
    """Stages in a row, independent of other jobs."""

    name: str
    stages: Sequence[Stage]

    @property
    def done(self) -> bool:
        return all(stage.result.exists() for stage in self.stages)


class Processes:
    """The commands that are running, so that they end when the experiment does."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def run(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str]) -> int:
        """Run to the end and return the exit status; output is appended to `log`."""
        with log.open("ab") as output:
            with self._lock:
                self.require_running()
                process = subprocess.Popen(
                    command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **environment}
                )
                self._running.add(process)
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                raise
            finally:
                with self._lock:
                    self._running.discard(process)

    def require_running(self) -> None:
        """Raises InterruptedError after `stop`."""
        if self._stopped:
            raise InterruptedError("the experiment was stopped")

    def stop(self) -> None:
        """End what is running and start nothing more."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def run_stage(
    stage: Stage,
    logs: Path,
    processes: Processes | None = None,
    *,
    environment: Mapping[str, str] | None = None,
) -> float:
    """Run one stage and return its seconds.

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
    return time.monotonic() - started


def run_jobs(
    jobs: Sequence[Job], logs: Path, *, at_once: int, threads: int | None = None, title: str = "jobs"
) -> dict[str, AegisError]:
    """Run jobs, several at once, with a bar over all their stages; a job that fails does not stop the others.

    Args:
        jobs: what to run; finished stages are not run again.
        logs: folder of their logs.
        at_once: how many jobs.
        threads: of each process, by default an equal share of the cores.
        title: of the bar.

    Returns:
        The error of each job that failed.
    """
    threads = threads or max(1, (os.cpu_count() or 1) // at_once)
    failed: dict[str, AegisError] = {}
    stages = [stage for job in jobs for stage in job.stages]
    with (
        tqdm(total=len(stages), desc=title, unit="stage") as bar,
        ThreadPoolExecutor(at_once) as pool,
        _ending_processes() as processes,  # innermost: the pool waits for what these run
    ):
        bar.update(sum(stage.result.exists() for stage in stages))
        futures = {
            pool.submit(_run_job, job, logs, processes, {"OMP_NUM_THREADS": str(threads)}, bar.update): job
            for job in jobs
            if not job.done
        }
        for future in as_completed(futures):
            try:
                future.result()
            except (AegisError, OSError) as error:
                failed[futures[future].name] = AegisError(str(error))
                bar.write(f"{futures[future].name}: {error}")
    return failed


def _run_job(
    job: Job,
    logs: Path,
    processes: Processes,
    environment: Mapping[str, str],
    count: Callable[[int], object],
) -> None:
    for stage in job.stages:
        if not stage.result.exists():
            run_stage(stage, logs, processes, environment=environment)
            count(1)


@contextmanager
def _ending_processes() -> Iterator[Processes]:
    """Processes that end with this block, and with a SIGTERM."""
    processes = Processes()
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if in_main else None
    try:
        yield processes
    except BaseException:
        processes.stop()
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _continued(command: list[str]) -> list[str]:
    """The command that goes on with a training that saved a checkpoint; any other command as it is."""
    folders = [flag.removeprefix("--output_dir=") for flag in command if flag.startswith("--output_dir=")]
    if command[0] != "lerobot-train" or not folders:
        return command
    config = Path(folders[0]) / "checkpoints" / "last" / "pretrained_model" / "train_config.json"
    return [command[0], f"--config_path={config}", "--resume=true"] if config.is_file() else command
