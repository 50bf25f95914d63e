"""`aegis-ablate`: many short trainings that differ in one flag, and what each keeps and learns.

Every variant is trained on the same demonstrations with the same seeds through `lerobot-train`; its backbone is asked
the same questions (`aegis-vqa`) and its chunks are compared with the same held-out demonstrations
(`aegis-action-error`). Stopped, it goes on where it was when the same command is given again.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from lerobot.utils.feature_utils import dataset_to_policy_features

from aegis_eval.experiments import catalogue as experiment_stages
from aegis_eval.experiments.folder import claimed
from aegis_eval.experiments.launchers import run_jobs
from aegis_eval.experiments.stage import Job
from aegis_eval.experiments.variants import ANCHORS, VARIANTS
from aegis_eval.pages.ablation import write_page
from aegis_eval.results.frontier import Frontier, Run
from aegis_eval.results.provenance import provenance
from aegis_eval.results.training_log import read_curves
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write

_DATA_SEEDS = {"val": 1_000_003, "test": 2_000_003}
"""Of the held-out demonstrations, far from any seed of the training ones."""
_TRAINING = (
    "tasks",
    "episodes",
    "scatter",
    "steps",
    "batch_size",
    "lr",
    "lr_backbone",
    "flow_samples",
    "probe_freq",
    "cameras",
    "policy",
    "vlm",
    "held_out",
    "samples",
    "frames",
)
"""Flags that everything in a folder has in common."""


@dataclass
class AblateConfig:
    """Flags of `aegis-ablate`.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again, and variants or seeds may be added.
        variants: names in `aegis_eval.experiments.variants.VARIANTS`; `none` and `stop_gradient`, which the
            others are measured between, always run.
        seeds: how many trainings of each variant.
        split: `val` to find a setting, `test` to report one: of the questions and of the held-out demonstrations.
        tasks: tabletop tasks, with commas.
        episodes: demonstrations to train on.
        scatter: share of them that begin anywhere (see `aegis-record`).
        held_out: demonstrations to measure the action error on.
        steps: training steps.
        batch_size: samples a step.
        lr: learning rate of the action expert.
        lr_backbone: learning rate of the backbone.
        flow_samples: see `AegisConfig`.
        probe_freq: ask the backbone VQA questions every so many training steps (0: never), for retention over steps.
        cameras: which of the dataset's cameras the policy sees, with commas. The wrist's alone shows scenes as no
            question ever did, so that much is to be learned in the backbone.
        policy: further flags of every training, without the leading `--policy.`, e.g. `[chunk_size=8]`; none that one
            of the protections refuses.
        vlm: the pretrained VLM.
        samples: questions asked of each trained backbone.
        frames: at which the action error is measured.
        jobs: trainings at once.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        redraw: instead of running anything, compute intervals, table and figures again from the runs in this
            `ablation.json` and write them to `output_dir`.
    """

    output_dir: Path = Path("outputs/ablation")
    variants: list[str] = field(default_factory=lambda: ["gaussian", "subspace", "kronecker", "lora"])
    seeds: int = 3
    split: str = "test"
    tasks: str = "reach"
    episodes: int = 600
    scatter: float = 0.0
    held_out: int = 100
    steps: int = 400
    batch_size: int = 16
    lr: float = 1.5e-3
    lr_backbone: float = 1.2e-3
    flow_samples: int = 4
    probe_freq: int = 0
    cameras: str | None = "wrist"
    policy: list[str] = field(default_factory=list)
    vlm: str = "embedded"
    samples: int = 1000
    frames: int = 1000
    jobs: int = 2
    device: str | None = None
    redraw: Path | None = None


def main() -> None:
    """Entry point of `aegis-ablate`."""
    cli.run(AblateConfig, ablate)


def ablate(config: AblateConfig) -> Path:
    """Run what has not been run, write `ablation.json`, `ablation.md` and two figures, name them.

    Raises:
        AegisError: flags that cannot be, a folder with trainings of other flags, or a job that failed.
    """
    if config.redraw is not None:
        results = json.loads(config.redraw.read_text())
        results["frontier"] = Frontier.of([Run(**run) for run in results["runs"]]).to_dict()
        return write_page(results, config.output_dir)
    _check(config)
    with claimed(config.output_dir, "setting.json", {name: getattr(config, name) for name in _TRAINING}):
        return _ablate(config)


def _ablate(config: AblateConfig) -> Path:
    started = time.monotonic()
    root = config.output_dir
    variants = list(dict.fromkeys(["none", "stop_gradient", *config.variants]))
    anchors = {anchor for name in variants if (anchor := VARIANTS[name].anchor_for(config.vlm)) is not None}
    _run([*_recordings(config), _pretrained_job(config)], config, "recordings")
    if anchors:
        _run([_anchor_job(config, name) for name in sorted(anchors)], config, "anchors")
    _run(
        [_training_job(config, name, seed) for seed in range(config.seeds) for name in variants],
        config,
        "trainings",
    )
    runs = [_read(config, name, seed) for name in variants for seed in range(config.seeds)]
    results = {
        "config": {
            key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()
        },
        "variants": {name: list(VARIANTS[name].flags) for name in variants},
        "frontier": Frontier.of(runs).to_dict(),
        "runs": [asdict(run) for run in runs],
        "provenance": provenance(0, time.monotonic() - started),
    }
    with atomic_write(root / "ablation.json") as beside:
        beside.write_text(json.dumps(results) + "\n")
    return write_page(results, root)


def _check(config: AblateConfig) -> None:
    cli.require_at_least(
        config,
        seeds=1,
        episodes=1,
        held_out=1,
        steps=1,
        batch_size=1,
        samples=1,
        frames=1,
        jobs=1,
        probe_freq=0,
    )
    if config.split not in _DATA_SEEDS:
        raise AegisError(f"--split={config.split} is unknown: choose {' or '.join(_DATA_SEEDS)}.")
    if unknown := [name for name in config.variants if name not in VARIANTS]:
        raise AegisError(f"--variants: {unknown[0]} is unknown; there are: {', '.join(VARIANTS)}.")


def _run(jobs: list[Job], config: AblateConfig, title: str) -> None:
    failed = run_jobs(jobs, at_once=config.jobs, title=title)
    if failed:
        name, error = next(iter(failed.items()))
        raise AegisError(f"{len(failed)} of {len(jobs)} {title} failed, the first is {name}: {error}")


def _recordings(config: AblateConfig) -> list[Job]:
    data = config.output_dir / "data"
    kinds = {
        "train": ("train", 0, config.episodes),
        config.split: (
            "train" if config.split == "val" else "test",
            _DATA_SEEDS[config.split],
            config.held_out,
        ),
    }
    stages = [
        experiment_stages.recording(
            f"record-{name}",
            data / name,
            split=split,
            task=config.tasks,
            episodes=episodes,
            seed=seed,
            flags=[f"--scatter={config.scatter}", "--num_workers=1"],
        )
        for name, (split, seed, episodes) in kinds.items()
    ]
    return [Job(stage.name, [stage], config.output_dir / "logs") for stage in stages]


def _pretrained_job(config: AblateConfig) -> Job:
    """Asks the pretrained model, whose images then lie in the cache before several runs want them at once."""
    name = f"pretrained-{config.split}"
    stage = experiment_stages.questions(
        name,
        config.output_dir / name,
        vlm=config.vlm,
        samples=config.samples,
        split=config.split,
        device=config.device,
    )
    return Job(name, [stage], config.output_dir / "logs")


def _anchor_job(config: AblateConfig, name: str) -> Job:
    out = config.output_dir / "anchors" / f"{name}.safetensors"
    flags = [flag.format(data=config.output_dir / "data" / "train") for flag in ANCHORS[name]]
    if config.cameras is not None:
        flags.append(f"--cameras={config.cameras}")
    stage = experiment_stages.anchor(name, out, vlm=config.vlm, device=config.device, flags=flags)
    return Job(stage.name, [stage], config.output_dir / "logs")


def _folder(config: AblateConfig, variant: str, seed: int) -> Path:
    return config.output_dir / "runs" / f"{variant.replace(' ', '_')}-{seed}"


def _training_job(config: AblateConfig, name: str, seed: int) -> Job:
    variant, folder = VARIANTS[name], _folder(config, name, seed)
    checkpoint = experiment_stages.last_checkpoint(folder / "training", config.steps)
    anchor = variant.anchor_for(config.vlm)
    anchor_path = config.output_dir / "anchors" / f"{anchor}.safetensors"
    learning = [
        f"--policy.vlm={config.vlm}",
        *variant.flags,
        *([f"--policy.anchor_path={anchor_path}"] if anchor else []),
        *_seen(config),
        *(f"--policy.{flag}" for flag in config.policy),
        f"--policy.optimizer_lr={config.lr}",
        f"--policy.optimizer_lr_backbone={config.lr_backbone}",
        f"--policy.flow_samples={config.flow_samples}",
        *([f"--policy.vqa_probe_freq={config.probe_freq}"] if config.probe_freq else []),
    ]
    label = folder.name
    return Job(
        label,
        [
            experiment_stages.training(
                f"{label}-training",
                folder / "training",
                dataset=config.output_dir / "data" / "train",
                steps=config.steps,
                batch_size=config.batch_size,
                seed=seed,
                saves=4,
                device=config.device,
                flags=learning,
            ),
            experiment_stages.action_error(
                f"{label}-action-error",
                folder / f"action-error-{config.split}.json",
                checkpoint=checkpoint,
                dataset=config.output_dir / "data" / config.split,
                frames=config.frames,
                device=config.device,
            ),
            experiment_stages.questions(
                f"{label}-vqa",
                folder / f"vqa-{config.split}",
                checkpoint=checkpoint,
                samples=config.samples,
                split=config.split,
                device=config.device,
            ),
        ],
        config.output_dir / "logs",
    )


def _seen(config: AblateConfig) -> list[str]:
    """The flag that names the policy's inputs, if it is not to see all that was recorded."""
    if config.cameras is None:
        return []
    wanted = {OBS_STATE, *(f"{OBS_IMAGES}.{camera}" for camera in config.cameras.split(","))}
    recorded = LeRobotDatasetMetadata("local/ablation", root=config.output_dir / "data" / "train").features
    if missing := sorted(wanted - recorded.keys()):
        raise AegisError(f"--cameras={config.cameras}: the demonstrations hold no {missing[0]}.")
    features = dataset_to_policy_features({key: recorded[key] for key in recorded if key in wanted})
    inputs = {
        key: {"type": feature.type.value, "shape": list(feature.shape)} for key, feature in features.items()
    }
    return [f"--policy.input_features={json.dumps(inputs)}"]


def _read(config: AblateConfig, name: str, seed: int) -> Run:
    folder = _folder(config, name, seed)
    curves = read_curves(config.output_dir / "logs" / f"{folder.name}-training.log")
    return Run.read(
        name,
        seed,
        vqa=folder / f"vqa-{config.split}",
        action_error=folder / f"action-error-{config.split}.json",
        curves={key: asdict(curve) for key, curve in curves.items()},
    )


if __name__ == "__main__":
    main()
