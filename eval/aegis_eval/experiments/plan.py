"""The plan of an experiment: phases of jobs, and the runs whose results they leave.

A plan knows the files that its jobs leave and nothing else, so one that was interrupted is the same plan. What is in it
says each experiment (`aegis_eval.experiments.comparison`, `ablate` and `demo` in `aegis_eval.commands.work`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from aegis_eval.experiments import costs
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.results.run_file import RunFile
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json

Launch = Callable[[Sequence[Job], str], Mapping[str, AegisError]]
"""(jobs, what they are) -> the error of each that failed; see `aegis_eval.experiments.launchers`."""


class Plan:
    """What an experiment does, in order.

    Args:
        root: folder of the experiment.
        setting: flags that all its runs have in common.
        phases: what its jobs are called -> the jobs, as far as they are known; asked again when their turn comes, for
            what one phase finds may decide what the next one does. Jobs of a phase are independent.
        runs: everything that gets a result file, as far as it is known.
    """

    def __init__(
        self,
        root: Path,
        setting: Mapping[str, Any],
        phases: Mapping[str, Callable[[], list[Job]]],
        runs: Callable[[], list[Run]],
    ) -> None:
        self.root = root
        self._setting = setting
        self._phases = phases
        self._runs = runs

    def jobs(self) -> dict[str, list[Job]]:
        """Phase -> its jobs, of those that have any by now."""
        return {title: jobs for title, found in self._phases.items() if (jobs := found())}

    def carry_out(self, launch: Launch) -> None:
        """Run what has not been run, a phase after the other; every run gets its result file, the plan its manifest.

        Raises:
            AegisError: jobs failed; the rest of their phase was run.
        """
        self.write_manifest()
        for title, found in self._phases.items():
            if not (jobs := found()):
                continue
            failed = launch(jobs, title)
            self.write_results()
            self.write_manifest()
            if failed:
                name, error = next(iter(failed.items()))
                raise AegisError(
                    f"{len(failed)} of {len(jobs)} {title} failed, the first is {name}: {error} What finished is "
                    "kept: mend it and give the same command again."
                )

    def result(self, name: str) -> RunFile:
        """What was found of the run of this name, from its result file.

        Raises:
            AegisError: there is none yet.
        """
        return RunFile.read(self._file(name))

    def write_results(self) -> None:
        """`results/NAME.json` of every run of which something has been measured."""
        for run in self._runs():
            found = run.results(self.root, self._setting)
            if found.measured:
                found.write(self._file(run.name))

    def write_manifest(self) -> Path:
        """`manifest.json`: every job and stage known by now, with its command, its result and whether that exists."""
        path = self.root / "manifest.json"
        jobs = (job for found in self.jobs().values() for job in found)
        write_json(path, [{"job": job.name, "done": job.done, "stages": _listed(job.stages)} for job in jobs])
        return path

    def describe(self, at_once: int, later: str = "") -> str:
        """The plan as text: jobs, stages still to run, and a rough time where a run has two cores.

        Args:
            at_once: how many jobs run beside each other.
            later: a line about what is not known yet.
        """
        lines, seconds, counted = [], 0.0, set[Path]()
        phases = self.jobs()
        for title, jobs in phases.items():
            stages = {
                stage.result: stage for job in jobs for stage in job.stages if stage.result not in counted
            }
            counted |= stages.keys()
            left = [stage for stage in stages.values() if not stage.done]
            seconds += sum(stage.cost for stage in left)
            lines.append(f"{title}: {len(jobs)} jobs, {len(left)} of {len(stages)} stages to run")
            lines += [f"  {job.name}{' (done)' if job.done else ''}" for job in jobs]
        pace = _pace(job for jobs in phases.values() for job in jobs)
        time = costs.readable((pace or 1.0) * seconds / at_once)
        basis = "as fast as what has finished here" if pace else "if each has two CPU cores; GPUs differ"
        return "\n".join(
            [*lines, *([later] if later else []), f"about {time} with {at_once} at once, {basis}"]
        )

    def _file(self, name: str) -> Path:
        return self.root / "results" / f"{name}.json"


def alone(stage: Stage, root: Path) -> Job:
    """A stage that is a job, with its log in the experiment's folder."""
    return Job(stage.name, [stage], root / "logs")


def _listed(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    return [
        {
            "name": stage.name,
            "command": stage.command,
            "result": str(stage.result),
            "done": stage.done,
        }
        for stage in stages
    ]


def _pace(jobs: Iterable[Job]) -> float | None:
    """Seconds that finished stages took, over those that were expected; None before the first."""
    took = expected = 0.0
    for job in jobs:
        for stage in job.stages:
            record = job.logs / f"{stage.name}.json"
            if stage.done and record.is_file():
                took, expected = took + read_json(record)["seconds"], expected + stage.cost
    return took / expected if expected else None
