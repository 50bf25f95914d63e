"""What runs the jobs of an experiment: processes on this machine, in turn or many at once, or a Ray cluster.

All run the same commands and leave the same files. At once or on Ray, a job that fails does not stop the others.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aegis_eval.experiments.stage import Job, Processes, Stage, run_job, run_stage
from aegis_policy.support.errors import AegisError

_POLL_S = 2.0
_TRIES = 3


def run_in_turn(jobs: Sequence[Job], title: str = "jobs") -> dict[str, AegisError]:
    """Run stage after stage, each told with its command, its log and how long it took; a failure ends it.

    Raises:
        AegisError: a stage failed.
    """
    heads = _heads(jobs)
    with _ending_processes() as processes:
        for job in jobs:
            _run_told(job, heads, processes)
    return {}


def run_side_by_side(jobs: Sequence[Job], title: str = "jobs") -> dict[str, AegisError]:
    """Run all jobs at once, which share this machine's cores; their stages are told as by `run_in_turn`.

    Returns:
        The error of each job that failed.
    """
    heads, environment = _heads(jobs), _share_of_cores(len(jobs))
    with (
        ThreadPoolExecutor(len(jobs)) as pool,
        _ending_processes() as processes,  # innermost: the pool waits for what these run
    ):
        futures = {pool.submit(_run_told, job, heads, processes, environment): job for job in jobs}
        return _failed(futures, lambda line: print(line, flush=True))


def _heads(jobs: Sequence[Job]) -> dict[Path, str]:
    """What each stage is called as it is told, by its result."""
    stages = [stage for job in jobs for stage in job.stages]
    return {
        stage.result: f"[{number}/{len(stages)}] {stage.title}"
        for number, stage in enumerate(stages, start=1)
    }


def _run_told(
    job: Job, heads: Mapping[Path, str], processes: Processes, environment: Mapping[str, str] | None = None
) -> None:
    for stage in job.stages:
        head = heads[stage.result]
        if stage.done:
            print(f"{head}: done before", flush=True)
            continue
        log = job.logs / f"{stage.name}.log"
        print(f"{head}\n    {' '.join(stage.command)}\n    log: {log}", flush=True)
        print(f"{head}: {run_stage(stage, job.logs, processes, environment=environment):.0f} s", flush=True)


def _failed(futures: "Mapping[Future[None], Job]", tell: Callable[[str], object]) -> dict[str, AegisError]:
    """The errors of jobs by their names, each told as soon as it is there."""
    failed: dict[str, AegisError] = {}
    for future in as_completed(futures):
        try:
            future.result()
        except (AegisError, OSError) as error:
            failed[futures[future].name] = AegisError(str(error))
            tell(f"{futures[future].name}: {error}")
    return failed


def _share_of_cores(at_once: int) -> dict[str, str]:
    """The environment of one of so many jobs."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}


def run_jobs(jobs: Sequence[Job], *, at_once: int, title: str = "jobs") -> dict[str, AegisError]:
    """Run jobs as processes of this machine, which share its cores, with a bar over all their stages.

    Args:
        jobs: what to run; finished stages are not run again.
        at_once: how many jobs.
        title: of the bar.

    Returns:
        The error of each job that failed.
    """
    with (
        Progress(jobs, title) as progress,
        ThreadPoolExecutor(at_once) as pool,
        _ending_processes() as processes,  # innermost: the pool waits for what these run
    ):
        environment = _share_of_cores(at_once)
        futures = {
            pool.submit(run_job, job, processes, environment, progress.finished): job
            for job in jobs
            if not job.done
        }
        return _failed(futures, progress.write)


def run_jobs_on_ray(
    jobs: Sequence[Job], *, cpus: float = 1, gpus: float = 0, title: str = "jobs"
) -> dict[str, AegisError]:
    """Run jobs on the Ray cluster that `RAY_ADDRESS` names, or the one of this machine, or else one made for it.

    All of its machines must see the same files under the same paths, and have this package installed. A job whose
    worker dies is run again, twice at most, and goes on where its files say.

    Args:
        jobs: what to run; finished stages are not run again.
        cpus: cores that each job asks for, and the threads of its processes.
        gpus: GPUs that each job asks for.
        title: of the bar.

    Returns:
        The error of each job that failed.

    Raises:
        AegisError: Ray is not installed, no machine of the cluster has what a job asks for.
    """
    ray = _ray()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        _require_room(ray, cpus, gpus)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_TRIES - 1)(_run_remotely)
        failed: dict[str, AegisError] = {}
        with Progress(jobs, title) as progress:
            environment = {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
            pending = {remote.remote(job, environment): job for job in jobs if not job.done}
            while pending:
                ready, _ = ray.wait(list(pending), timeout=_POLL_S)
                for reference in ready:
                    job = pending.pop(reference)
                    try:
                        error = ray.get(reference)
                    except ray.exceptions.RayError as lost:
                        error = f"its worker was lost {_TRIES} times ({type(lost).__name__})"
                    if error is not None:
                        failed[job.name] = AegisError(error)
                        progress.write(f"{job.name}: {error}")
                progress.look()
        return failed
    finally:
        ray.shutdown()  # ends what still runs, and the commands with it


class Progress:
    """A bar over the stages of many jobs, which counts each by its cost."""

    def __init__(self, jobs: Sequence[Job], title: str) -> None:
        self._title = title
        self._stages = [stage for job in jobs for stage in job.stages]
        self._done = {stage.result for stage in self._stages if stage.done}
        before = sum(stage.cost for stage in self._stages if stage.result in self._done)
        self._bar = tqdm(
            total=sum(stage.cost for stage in self._stages),
            initial=before,
            bar_format="{desc} {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]",
        )
        self._lock = threading.Lock()
        self._show()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    @property
    def share(self) -> float:
        """Share of the whole cost that is done."""
        return float(self._bar.n / self._bar.total)

    def finished(self, stage: Stage) -> None:
        """Count a stage that has just finished."""
        with self._lock:
            if stage.result not in self._done:
                self._done.add(stage.result)
                self._bar.update(stage.cost)
                self._show()

    def look(self) -> None:
        """Count the stages whose results exist by now, wherever they ran."""
        for stage in self._stages:
            if stage.result not in self._done and stage.done:
                self.finished(stage)
        self._bar.refresh()

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.write(line)

    def _show(self) -> None:
        self._bar.set_description_str(f"{self._title}, {len(self._done)} of {len(self._stages)} stages:")


@contextmanager
def _ending_processes() -> Iterator[Processes]:
    """Processes that end with this block, and with a SIGTERM."""
    processes = Processes(forked=True)
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


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise AegisError(
            "--launcher=ray needs Ray: install it with `uv pip install '.[ray]'` in a clone of this project."
        ) from error
    return ray


def _require_room(ray: Any, cpus: float, gpus: float) -> None:
    """A task that fits nowhere would wait forever without a word."""
    offered = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in offered):
        found = ", ".join(f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in offered)
        raise AegisError(
            f"No machine of the Ray cluster has the {cpus:g} cores and {gpus:g} GPUs that a job asks for (there "
            f"are: {found or 'none'}): ask for less with --cpus and --gpus."
        )


def _run_remotely(job: Job, environment: dict[str, str]) -> str | None:
    """The sentence of what went wrong, if anything: Ray shall retry lost workers, not failed commands."""
    try:
        run_job(job, environment=environment)
    except (AegisError, OSError) as error:
        return str(error)
    return None
