"""What one run of `aegis-compare` does: a training, then what is measured of its checkpoint, each with its cost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from aegis_envs.tabletop.env import STATE_DIM
from aegis_envs.tabletop.sim import IMAGE_SIZE
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.experiments import catalogue as experiment_stages
from aegis_eval.experiments.stage import Stage
from aegis_eval.experiments.variants import VARIANTS

SPLITS = ("test", "unseen")
BENCHMARKS = ("tabletop", "tabletop_robot")
ROLLOUT_SEED = 1000
_VALIDATION_SEED = 1_000_003
"""Of rollouts on `train` scenes, far from any seed of the demonstrations."""
_DRIFT_SAMPLES = 200
_CAMERA = f"{OBS_IMAGES}."
START_S = 2.0
"""Before a command does anything."""
_STEP_OVER_NONE = {
    "replay": 1.4,
    "knowledge_insulation": 1.3,
    "gaussian": 1.2,
    "freeze": 0.82,
    "stop_gradient": 0.82,
}
"""`benchmarks/step_cost.py`; what is not named costs about as much as `none`."""


class Settings(Protocol):
    """What a plan needs of the flags; see `aegis_eval.commands.compare.CompareConfig`."""

    output_dir: Path
    protections: str
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
    cameras: str | None
    policy: list[str]
    device: str | None
    eval_episodes: int
    validation_episodes: int
    samples: int
    pairs: int


@dataclass(frozen=True)
class RunKey:
    """Which training: protection, learning rate of the backbone, seed."""

    protection: str
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.protection.replace(' ', '_')}-lr{self.lr:g}-seed{self.seed}"


@dataclass(frozen=True)
class Run:
    """One run and where its files are.

    Attributes:
        settings: of the comparison.
        key: which run.
        folder: everything about it.
        data: the demonstrations.
        root: of the comparison, with its anchors and the answers of the pretrained model.
    """

    settings: Settings
    key: RunKey
    folder: Path
    data: Path
    root: Path

    def training(self) -> Stage:
        """Through `lerobot-train`."""
        settings, key = self.settings, self.key
        variant = VARIANTS[key.protection]
        flags = [
            *variant.flags,
            *([f"--policy.anchor_path={anchor_file(self.root, variant.anchor)}"] if variant.anchor else []),
            *(f"--policy.{flag}" for flag in settings.policy),
            f"--policy.optimizer_lr={settings.lr}",
            f"--policy.optimizer_lr_backbone={key.lr}",
            f"--policy.flow_samples={settings.flow_samples}",
            *([_inputs(names_in(settings.cameras), settings.dataset)] if settings.cameras else []),
        ]
        stage = experiment_stages.training(
            "training",
            self.folder / "training",
            dataset=self.data,
            steps=settings.steps,
            batch_size=settings.batch_size,
            seed=key.seed,
            saves=5,
            device=settings.device,
            flags=flags,
        )
        step_s = (0.1 + 0.075 * settings.flow_samples) * settings.batch_size / 16
        cost = START_S + settings.steps * step_s * _STEP_OVER_NONE.get(key.protection, 1.0)
        return replace(stage, cost=cost)

    def validation(self) -> list[Stage]:
        """What a learning rate is chosen by."""
        settings, folder, checkpoint = self.settings, self.folder, self._checkpoint
        rollouts = experiment_stages.rollouts(
            "rollouts-val",
            folder / "rollouts-val",
            checkpoint=checkpoint,
            task=settings.task,
            split="train",
            episodes=settings.validation_episodes,
            seed=_VALIDATION_SEED,
            device=settings.device,
        )
        asked = experiment_stages.questions(
            "vqa-tabletop-val",
            folder / "vqa-tabletop-val",
            checkpoint=checkpoint,
            samples=settings.samples,
            split="val",
            pretrained=answers_folder(self.root, BENCHMARKS[0], "val"),
            device=settings.device,
        )
        return [
            replace(rollouts, cost=self._rollout_cost(settings.validation_episodes)),
            replace(asked, cost=asking_cost(settings.samples)),
        ]

    def test(self) -> list[Stage]:
        """Everything that is reported."""
        settings, folder, checkpoint = self.settings, self.folder, self._checkpoint
        stages = [
            replace(
                experiment_stages.rollouts(
                    f"rollouts-{split}",
                    folder / f"rollouts-{split}",
                    checkpoint=checkpoint,
                    task=settings.task,
                    split=split,
                    episodes=settings.eval_episodes,
                    seed=ROLLOUT_SEED,
                    device=settings.device,
                ),
                cost=self._rollout_cost(settings.eval_episodes),
            )
            for split in SPLITS
        ]
        stages += [
            replace(
                experiment_stages.questions(
                    f"vqa-{benchmark}",
                    folder / f"vqa-{benchmark}",
                    checkpoint=checkpoint,
                    samples=settings.samples,
                    split="test",
                    benchmark=benchmark,
                    pretrained=answers_folder(self.root, benchmark, "test"),
                    device=settings.device,
                ),
                cost=asking_cost(settings.samples),
            )
            for benchmark in BENCHMARKS
        ]
        swap = experiment_stages.swap(
            "swap",
            folder / "swap.json",
            checkpoint=checkpoint,
            task=settings.task,
            split="test",
            pairs=settings.pairs,
            seed=ROLLOUT_SEED,
            device=settings.device,
        )
        drift = experiment_stages.drift(
            "drift",
            folder / "drift.json",
            checkpoint=checkpoint,
            samples=min(_DRIFT_SAMPLES, settings.samples),
            split="test",
            device=settings.device,
        )
        return [
            *stages,
            replace(swap, cost=self._rollout_cost(2 * settings.pairs)),
            replace(drift, cost=3 * START_S),
        ]

    @property
    def _checkpoint(self) -> Path:
        return experiment_stages.last_checkpoint(self.folder / "training", self.settings.steps)

    def _rollout_cost(self, episodes: int) -> float:
        return START_S + 0.5 * episodes * len(parse_tasks(self.settings.task))


def anchor_file(root: Path, name: str) -> Path:
    """Of an anchor that the embedded VLM does not bring."""
    return root / "anchors" / f"{name}.safetensors"


def answers_folder(root: Path, benchmark: str, split: str) -> Path:
    """What the pretrained model answered."""
    return root / f"pretrained-{benchmark}-{split}"


def asking_cost(samples: int) -> float:
    """Seconds that so many questions take."""
    return START_S + 0.012 * samples


def _inputs(cameras: Sequence[str], dataset: Path | None) -> str:
    """The flag that lets a policy see these of the tabletop's cameras alone, and the state."""
    size = IMAGE_SIZE if dataset is None else _recorded(dataset)[f"{_CAMERA}{cameras[0]}"]["shape"][0]
    seen = {f"{_CAMERA}{name}": {"type": "VISUAL", "shape": [3, size, size]} for name in cameras}
    inputs = {**seen, OBS_STATE: {"type": "STATE", "shape": [STATE_DIM]}}
    return f"--policy.input_features={json.dumps(inputs)}"


def cameras_in(dataset: Path) -> list[str]:
    """Of the LeRobotDataset in this folder."""
    return [key.removeprefix(_CAMERA) for key in _recorded(dataset) if key.startswith(_CAMERA)]


def _recorded(dataset: Path) -> Mapping[str, Any]:
    return json.loads((dataset / "meta" / "info.json").read_text())["features"]


def names_in(text: str) -> list[str]:
    """What commas part, without outer blanks."""
    return [name.strip() for name in text.split(",")]
