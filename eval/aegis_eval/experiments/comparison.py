"""The plan of `aegis-compare`: which trainings, what is measured of each, and whose learning rate is chosen how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.experiments import catalogue, costs, texts
from aegis_eval.experiments.anchors import anchor_flags, anchor_jobs
from aegis_eval.experiments.cameras import inputs_flag, names_in
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.experiments.trials import read_trials
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.results.rows import (
    COMPARED_BENCHMARKS,
    COMPARED_SPLITS,
    Validation,
    point_at,
    validation,
)

ROLLOUT_SEED = 1000
_VALIDATION_SEED = 1_000_003
"""Seed of rollouts on `train` scenes, far from any of the demonstrations."""
_DRIFT_SAMPLES = 200
_SAVES = 5
"""Checkpoints of a training."""
_ACTED_KINDS = ("relation", "extreme", "count")
"""What the embedded VLM answers, of `aegis-act`'s questions."""
_NOT_TUNED = frozenset({"freeze", "stop_gradient"})
"""Their backbone does not learn, so it has no learning rate."""
_SAME_TRAINING = ("freeze", "stop_gradient")
"""These train to the same weights, where neither vision tower nor projector learn."""
_TUNING_SEED = 0


class Settings(Protocol):
    """What a comparison needs of the flags; see `aegis_eval.commands.compare.CompareConfig`."""

    output_dir: Path
    protections: str
    trials: Path | None
    seeds: int
    task: str
    dataset: Path | None
    episodes: int
    steps: int
    batch_size: int
    lr: float
    lr_backbone: float
    lr_grid: list[float]
    flow_samples: int
    vlm: str
    anchor_vqa: str
    start: Path | None
    texts: list[str]
    cameras: str | None
    policy: list[str]
    device: str | None
    eval_episodes: int
    validation_episodes: int
    samples: int
    pairs: int
    act_scenes: int
    alphas: list[float]
    curve_seeds: int


@dataclass(frozen=True)
class RunKey:
    """Which training: protection, learning rate of the backbone, seed."""

    protection: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder and of its result file."""
        return f"{self.protection.replace(' ', '_')}-lr{self.lr:g}-seed{self.seed}"


class ComparisonPlan(Plan):
    """The jobs of a comparison and where their results are.

    Args:
        settings: flags of `aegis-compare`.
        setting: those of them that all runs have in common.
    """

    def __init__(self, settings: Settings, setting: Mapping[str, Any]) -> None:
        phases = {
            "preparations": self._preparations,
            "anchors": self._anchors,
            "choosing learning rates": self._tuning,
            "runs": self._tests,
        }
        super().__init__(settings.output_dir, setting, phases, self._all_runs)
        self.settings = settings
        self.trials = self._tried()
        tried = [key.protection for keys in self.trials.values() for key in keys]
        self.protections = list(dict.fromkeys(["none", *tried]))
        """Every variant that may be trained."""

    def _tried(self) -> dict[str, list[RunKey]]:
        """Protection -> the trainings that its variant and learning rate are chosen from; one, where nothing is."""
        settings = self.settings
        if settings.trials is not None:
            return {
                name: [RunKey(each.variant, each.lr, _TUNING_SEED) for each in tried]
                for name, tried in read_trials(settings.trials, settings.lr_backbone).items()
            }
        return {
            name: [
                RunKey(name, lr, _TUNING_SEED)
                for lr in (settings.lr_grid if name not in _NOT_TUNED else ()) or (settings.lr_backbone,)
            ]
            for name in dict.fromkeys(["none", *names_in(settings.protections)])
        }

    def reported_keys(self) -> list[RunKey]:
        """All protections at the same learning rate, unless trials are listed; then, once it is chosen, each as it
        was best."""
        best = self.chosen().values()
        tuned = [replace(key, seed=seed) for seed in range(self.settings.seeds) for key in best]
        return list(dict.fromkeys([*self._common_keys(), *tuned]))

    def validations(self) -> list[Validation]:
        """What has been measured on validation data so far."""
        runs = (self._run(key, self._validation(key)) for key in self._tuning_keys())
        scores = (validation(run.results(self.root, {})) for run in runs)
        return [score for score in scores if score is not None]

    def chosen(self) -> dict[str, RunKey]:
        """The best trial of each protection; {} while some are open, or where nothing is chosen."""
        scores = {(each.protection, each.lr): each.score for each in self.validations()}
        tuning = self._tuning_keys()
        if not tuning or any((key.protection, key.lr) not in scores for key in tuning):
            return {}
        return {
            name: max(
                sorted(keys, key=lambda key: key.lr),
                key=lambda key: scores.get((key.protection, key.lr), 0.0),
            )
            for name, keys in self.trials.items()
        }

    def chosen_lrs(self) -> dict[str, float]:
        """The learning rate of each variant that was chosen; {} while some are open."""
        return {key.protection: key.lr for key in self.chosen().values()}

    def answers_folder(self, benchmark: str, split: str) -> Path:
        """What the pretrained model answered."""
        return self.root / f"pretrained-{benchmark}-{split}"

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

    def _common_keys(self) -> list[RunKey]:
        seeds, lr = range(self.settings.seeds), self.settings.lr_backbone
        names = self.trials if self.settings.trials is None else ()
        return [RunKey(protection, lr, seed) for seed in seeds for protection in names]

    def _tuning_keys(self) -> list[RunKey]:
        settings = self.settings
        if settings.trials is None and not settings.lr_grid:
            return []
        return [key for keys in self.trials.values() for key in keys if key.protection not in _NOT_TUNED]

    def _preparations(self) -> list[Job]:
        """Demonstrations, and the pretrained model's answers, whose pictures several runs want at once."""
        settings, stages = self.settings, []
        if settings.dataset is None:
            stages.append(
                catalogue.recording(
                    "recording", self._data, task=settings.task, episodes=settings.episodes, seed=0
                )
            )
        asked = [(benchmark, "test") for benchmark in COMPARED_BENCHMARKS]
        asked += [(COMPARED_BENCHMARKS[0], "val")] if self._tuning_keys() else []
        for benchmark, split in asked:
            folder = self.answers_folder(benchmark, split)
            stages.append(
                catalogue.questions(
                    folder.name,
                    folder,
                    vlm=settings.vlm,
                    samples=settings.samples,
                    split=split,
                    benchmark=benchmark,
                    device=settings.device,
                )
            )
        asking = texts.pretrained_jobs(self.root, settings.texts, vlm=settings.vlm, device=settings.device)
        return [*(alone(stage, self.root) for stage in stages), *asking]

    def _anchors(self) -> list[Job]:
        return anchor_jobs(
            self.root,
            self.protections,
            data=self._data,
            cameras=self.settings.cameras,
            device=self.settings.device,
            vlm=self.settings.vlm,
            vqa=self.settings.anchor_vqa,
        )

    def _tuning(self) -> list[Job]:
        """Every trial of every protection, measured on validation data."""
        return [
            self._run(key, [self._training(key), *self._validation(key)]).job for key in self._tuning_keys()
        ]

    def _tests(self) -> list[Job]:
        """Everything that is reported, measured on test data."""
        trained = dict.fromkeys(map(self._trained, self.reported_keys()))
        return [self._run(key, [self._training(key), *self._test(key)]).job for key in trained]

    def _all_runs(self) -> list[Run]:
        return [
            self._run(key, [self._training(key), *self._validation(key), *self._test(key)])
            for key in dict.fromkeys([*self.reported_keys(), *self._tuning_keys()])
        ]

    def _run(self, key: RunKey, stages: Sequence[Stage]) -> Run:
        folder = self.folder(key)
        return Run(key.name, key.protection, key.lr, key.seed, folder, folder / "logs", stages)

    def _training(self, key: RunKey) -> Stage:
        settings = self.settings
        cameras = names_in(settings.cameras) if settings.cameras else []
        flags = [
            f"--policy.vlm={settings.vlm}",
            *VARIANTS[key.protection].flags,
            *anchor_flags(self.root, key.protection, settings.vlm),
            *(f"--policy.{flag}" for flag in settings.policy),
            f"--policy.optimizer_lr={settings.lr}",
            f"--policy.optimizer_lr_backbone={key.lr}",
            f"--policy.flow_samples={settings.flow_samples}",
            *([inputs_flag(cameras, settings.dataset)] if cameras else []),
        ]
        return catalogue.training(
            "training",
            self.folder(key) / "training",
            dataset=self._data,
            steps=settings.steps,
            batch_size=settings.batch_size,
            seed=key.seed,
            saves=_SAVES,
            start=settings.start,
            device=settings.device,
            flags=flags,
            cost=costs.training(
                key.protection,
                steps=settings.steps,
                batch_size=settings.batch_size,
                flow_samples=settings.flow_samples,
            ),
        )

    def _validation(self, key: RunKey) -> list[Stage]:
        """What a learning rate is chosen by."""
        return [
            self._rollouts(key, "val", "train", self.settings.validation_episodes, _VALIDATION_SEED),
            self._questions(key, f"vqa-{COMPARED_BENCHMARKS[0]}-val", COMPARED_BENCHMARKS[0], "val"),
        ]

    def _test(self, key: RunKey) -> list[Stage]:
        """Everything that is reported."""
        settings, folder, checkpoint = self.settings, self.folder(key), self._checkpoint(key)
        episodes = settings.eval_episodes
        return [
            *(self._rollouts(key, split, split, episodes, ROLLOUT_SEED) for split in COMPARED_SPLITS),
            *(self._questions(key, f"vqa-{name}", name, "test") for name in COMPARED_BENCHMARKS),
            catalogue.swap(
                "swap",
                folder / "swap.json",
                checkpoint=checkpoint,
                task=settings.task,
                tasks=len(parse_tasks(settings.task)),
                pairs=settings.pairs,
                seed=ROLLOUT_SEED,
                device=settings.device,
            ),
            *self._acting(folder, checkpoint),
            *self._curve(key),
            *texts.stages(self.root, folder, settings.texts, checkpoint=checkpoint, device=settings.device),
            catalogue.drift(
                "drift",
                folder / "drift.json",
                checkpoint=checkpoint,
                samples=min(_DRIFT_SAMPLES, settings.samples),
                split="test",
                device=settings.device,
            ),
        ]

    def _curve(self, key: RunKey) -> list[Stage]:
        """The same success and answers on the way to the last checkpoint, and back from it."""
        settings, folder, last = self.settings, self.folder(key), self._checkpoint(key)
        if key.seed >= settings.curve_seeds:
            return []
        found = []
        for step in catalogue.saved_steps(settings.steps, _SAVES)[:-1]:
            checkpoint = catalogue.last_checkpoint(folder / "training", step)
            found += self._point(key, point_at("step", step), checkpoint)
        for alpha in settings.alphas if key.protection not in _NOT_TUNED else ():
            label = point_at("alpha", alpha)
            merged = folder / f"merged-{label}"
            asked = self._point(key, label, merged)
            spare = (merged / "model.safetensors",)
            found += [
                catalogue.merging(f"merging-{label}", merged, checkpoint=last, alpha=alpha),
                *asked[:-1],
                replace(asked[-1], spare=spare),
            ]
        return found

    def _point(self, key: RunKey, label: str, checkpoint: Path) -> list[Stage]:
        benchmark = COMPARED_BENCHMARKS[0]
        return [
            self._rollouts(key, label, "test", self.settings.eval_episodes, ROLLOUT_SEED, checkpoint),
            self._questions(key, f"vqa-{label}", benchmark, "test", checkpoint),
        ]

    def _acting(self, folder: Path, checkpoint: Path) -> list[Stage]:
        """What asks for an arm that reaches, and sees what the questions are about."""
        settings = self.settings
        cameras = names_in(settings.cameras) if settings.cameras else ["front"]
        if not settings.act_scenes or "reach" not in parse_tasks(settings.task) or "front" not in cameras:
            return []
        return [
            catalogue.acting(
                "act",
                folder / "act.json",
                checkpoint=checkpoint,
                kinds=_ACTED_KINDS,
                scenes=settings.act_scenes,
                seed=ROLLOUT_SEED,
                device=settings.device,
            )
        ]

    def _rollouts(
        self, key: RunKey, name: str, split: str, episodes: int, seed: int, checkpoint: Path | None = None
    ) -> Stage:
        return catalogue.rollouts(
            f"rollouts-{name}",
            self.folder(key) / f"rollouts-{name}",
            checkpoint=checkpoint or self._checkpoint(key),
            task=self.settings.task,
            tasks=len(parse_tasks(self.settings.task)),
            split=split,
            episodes=episodes,
            seed=seed,
            device=self.settings.device,
        )

    def _questions(
        self, key: RunKey, name: str, benchmark: str, split: str, checkpoint: Path | None = None
    ) -> Stage:
        return catalogue.questions(
            name,
            self.folder(key) / name,
            checkpoint=checkpoint or self._checkpoint(key),
            samples=self.settings.samples,
            split=split,
            benchmark=benchmark,
            pretrained=self.answers_folder(benchmark, split),
            device=self.settings.device,
        )

    def _checkpoint(self, key: RunKey) -> Path:
        return catalogue.last_checkpoint(self.folder(key) / "training", self.settings.steps)

    @property
    def _data(self) -> Path:
        return self.settings.dataset or self.root / "data"


def learning_parts(policy: Sequence[str]) -> list[str]:
    """Those of the `--policy` flags by which more of the VLM than its decoder learns."""
    parts = ("train_vision_tower", "train_projector")
    return [flag for flag in policy if flag.split("=")[0] in parts and not flag.lower().endswith("=false")]
