"""The jobs of `aegis-compare`: which trainings, what is measured of each, and how long it may take.

What has happened is read from the files that the jobs leave, so a plan that was interrupted is the same plan.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aegis_eval.experiments import catalogue as experiment_stages
from aegis_eval.experiments.compare_stages import (
    BENCHMARKS,
    START_S,
    Run,
    RunKey,
    Settings,
    anchor_file,
    answers_folder,
    asking_cost,
    names_in,
)
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.experiments.variants import ANCHORS, VARIANTS
from aegis_eval.results.rollouts import read_rollouts
from aegis_eval.results.run import read_vqa
from aegis_policy.support.files import atomic_write

NOT_TUNED = frozenset({"freeze", "stop_gradient"})
"""Their backbone does not learn, so it has no learning rate."""
_SAME_TRAINING = ("freeze", "stop_gradient")
"""These train to the same weights, where neither vision tower nor projector learn."""
_TUNING_SEED = 0


@dataclass(frozen=True)
class Validation:
    """What a learning rate is chosen by: success on validation scenes, and answers kept on validation questions."""

    protection: str
    lr: float
    success: float
    retained: float

    @property
    def score(self) -> float:
        """Both skills count the same."""
        return self.success + self.retained


class Plan:
    """The jobs of a comparison and where their results are."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.root = settings.output_dir
        self.protections = list(dict.fromkeys(["none", *names_in(settings.protections)]))

    def folder(self, key: RunKey) -> Path:
        """Everything about one run; protections that are the same training share theirs."""
        return self.root / "runs" / self._trained(key).name

    def _trained(self, key: RunKey) -> RunKey:
        """The run that is trained for this one."""
        if key.protection not in _SAME_TRAINING or learning_parts(self.settings.policy):
            return key
        same = [replace(key, protection=name) for name in _SAME_TRAINING if name in self.protections]
        begun = [each for each in same if (self.root / "runs" / each.name).is_dir()]
        return (begun or same)[0]

    def preparations(self) -> list[Job]:
        """Demonstrations, and the pretrained model's answers, whose pictures several runs want at once."""
        settings, jobs = self.settings, []
        if settings.dataset is None:
            recording = experiment_stages.recording(
                "recording", self._data, split="train", task=settings.task, episodes=settings.episodes, seed=0
            )
            jobs.append(self._job([replace(recording, cost=START_S + 0.25 * settings.episodes)]))
        asked = [(benchmark, "test") for benchmark in BENCHMARKS]
        asked += [(BENCHMARKS[0], "val")] if settings.lr_grid else []
        for benchmark, split in asked:
            folder = answers_folder(self.root, benchmark, split)
            stage = experiment_stages.questions(
                folder.name,
                folder,
                vlm="embedded",
                samples=settings.samples,
                split=split,
                benchmark=benchmark,
                device=settings.device,
            )
            jobs.append(self._job([replace(stage, cost=asking_cost(settings.samples))]))
        return jobs

    def anchors(self) -> list[Job]:
        """Those that the embedded VLM does not bring; some are of the demonstrations."""
        jobs = []
        for name in sorted({anchor for each in self.protections if (anchor := VARIANTS[each].anchor)}):
            flags = [flag.format(data=self._data) for flag in ANCHORS[name]]
            if self.settings.cameras:
                flags.append(f"--cameras={','.join(names_in(self.settings.cameras))}")
            stage = experiment_stages.anchor(
                name, anchor_file(self.root, name), vlm="embedded", device=self.settings.device, flags=flags
            )
            jobs.append(self._job([replace(stage, cost=200.0)]))
        return jobs

    def tuning(self) -> list[Job]:
        """One training of each protection at every learning rate of the grid, measured on validation data."""
        return [
            Job(
                key.name, [self._run(key).training(), *self._run(key).validation()], self.folder(key) / "logs"
            )
            for key in self._tuning_keys()
        ]

    def common_keys(self) -> list[RunKey]:
        """All protections at the same learning rate."""
        seeds, lr = range(self.settings.seeds), self.settings.lr_backbone
        return [RunKey(protection, lr, seed) for seed in seeds for protection in self.protections]

    def tuned_keys(self) -> list[RunKey]:
        """All protections, each at its own; none as long as not all validation is done."""
        chosen = self.chosen_lrs()
        return [replace(key, lr=chosen[key.protection]) for key in self.common_keys()] if chosen else []

    def runs(self) -> list[Job]:
        """Everything that is reported, measured on test data."""
        return [
            Job(key.name, [self._run(key).training(), *self._run(key).test()], self.folder(key) / "logs")
            for key in dict.fromkeys(map(self._trained, [*self.common_keys(), *self.tuned_keys()]))
        ]

    def tuning_scores(self) -> list[Validation]:
        """What has been measured on validation data so far."""
        scores = []
        for key in self._tuning_keys():
            rollouts, answers = self.folder(key) / "rollouts-val", self.folder(key) / "vqa-tabletop-val"
            if (rollouts / "eval_info.json").is_file() and (answers / "results.json").is_file():
                vqa = read_vqa(answers)
                success = read_rollouts(rollouts).overall.rate
                retained = vqa["accuracy"] / vqa["pretrained"]["accuracy"]
                scores.append(Validation(key.protection, key.lr, success, retained))
        return scores

    def chosen_lrs(self) -> dict[str, float]:
        """The learning rate of each protection with the best score, ties going to the lower; {} while some are open."""
        scores = self.tuning_scores()
        if not scores or len(scores) < len(self._tuning_keys()):
            return {}
        best = {
            protection: max(
                (each for each in scores if each.protection == protection),
                key=lambda each: (each.score, -each.lr),
            ).lr
            for protection in {each.protection for each in scores}
        }
        return {
            protection: best.get(protection, self.settings.lr_backbone) for protection in self.protections
        }

    def write_manifest(self) -> Path:
        """`manifest.json`: every job and stage known by now, with its command, its result and whether that exists."""
        jobs = [
            *self.preparations(),
            *self.anchors(),
            *(self.tuning() if self.settings.lr_grid else []),
            *self.runs(),
        ]
        manifest = [
            {
                "job": job.name,
                "done": job.done,
                "stages": [
                    {
                        "name": stage.name,
                        "command": stage.command,
                        "result": str(stage.result),
                        "done": stage.result.exists(),
                    }
                    for stage in job.stages
                ],
            }
            for job in jobs
        ]
        path = self.root / "manifest.json"
        with atomic_write(path) as beside:
            beside.write_text(json.dumps(manifest, indent=2) + "\n")
        return path

    def describe(self, at_once: int) -> str:
        """The plan as text: jobs, stages still to run, and a rough time where a run has two cores."""
        groups = {"preparations": self.preparations(), "anchors": self.anchors()}
        if self.settings.lr_grid:
            groups["choosing learning rates"] = self.tuning()
        groups["runs"] = self.runs()
        lines, seconds, counted = [], 0.0, set[Path]()
        for title, jobs in groups.items():
            stages = {
                stage.result: stage for job in jobs for stage in job.stages if stage.result not in counted
            }
            counted |= stages.keys()
            if not jobs:
                continue
            left = [stage for stage in stages.values() if not stage.result.exists()]
            seconds += sum(stage.cost for stage in left)
            lines.append(f"{title}: {len(jobs)} jobs, {len(left)} of {len(stages)} stages to run")
            lines += [f"  {job.name}{' (done)' if job.done else ''}" for job in jobs]
        if self.settings.lr_grid and not self.chosen_lrs():
            lines.append("and, once learning rates are chosen, a run of each protection and seed at its own")
        pace = self._pace([job for jobs in groups.values() for job in jobs])
        minutes = (pace or 1.0) * seconds / 60 / at_once
        time = f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{max(minutes, 1):.0f} minutes"
        basis = "as fast as what has finished here" if pace else "if each has two CPU cores; GPUs differ"
        lines.append(f"about {time} with {at_once} at once, {basis}")
        return "\n".join(lines)

    def _pace(self, jobs: Sequence[Job]) -> float | None:
        """Seconds that finished stages took, over those that were expected; None before the first."""
        took = expected = 0.0
        for job in jobs:
            seconds = read_seconds(job.logs)
            for stage in job.stages:
                if stage.result.exists() and stage.name in seconds:
                    took, expected = took + seconds[stage.name], expected + stage.cost
        return took / expected if expected else None

    @property
    def _data(self) -> Path:
        return self.settings.dataset or self.root / "data"

    def _job(self, stages: list[Stage]) -> Job:
        return Job(stages[0].name, stages, self.root / "logs")

    def _tuning_keys(self) -> list[RunKey]:
        return [
            RunKey(protection, lr, _TUNING_SEED)
            for protection in self.protections
            for lr in self.settings.lr_grid
            if protection not in NOT_TUNED
        ]

    def _run(self, key: RunKey) -> Run:
        return Run(self.settings, key, self.folder(key), self._data, self.root)


def learning_parts(policy: Sequence[str]) -> list[str]:
    """Those of the `--policy` flags by which more of the VLM than its decoder learns."""
    parts = ("train_vision_tower", "train_projector")
    return [flag for flag in policy if flag.split("=")[0] in parts and not flag.lower().endswith("=false")]


def read_seconds(logs: Path) -> Mapping[str, float]:
    """Stage -> seconds, of those that finished."""
    return {path.stem: json.loads(path.read_text())["seconds"] for path in sorted(logs.glob("*.json"))}
