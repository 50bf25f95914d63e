"""What makes the arm act sooner? Choices of training in the same time each, compared by success on `train` scenes.

    python benchmarks/sample_efficiency.py [--choices=adamw-2e-3,half-depth] [--seeds=3]

Every choice of `CHOICES` trains the embedded VLM under AEGIS on the same demonstrations, for as many steps as fit into
the time that `--steps` of the reference take; then `train` scenes that no demonstration shows are rolled out, and
questions of `val` asked. Two trainings run at once, one core each. Given again, the command goes on where it stopped.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean

import numpy as np

from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_jobs
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.results.run_file import RunFile
from aegis_eval.statistics.resampling import Array, Resampling, bits, change_estimate, rate_estimate
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import change, rate
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write

LR_BACKBONE = 3e-4
_ROLLOUT_SEED = 777_000
"""Scenes of the `train` split far behind the demonstrations'."""
_AT_ONCE = 2
_MUON = ("--policy.expert_optimizer=muon", "--policy.optimizer_lr=6e-3")


@dataclass(frozen=True)
class Choice:
    """Flags of a training, and how long a step of it takes over one of the reference (docs/performance.md)."""

    flags: tuple[str, ...]
    step: float = 1.0
    batch_size: int = 16


REFERENCE = "muon"
CHOICES: dict[str, Choice] = {
    REFERENCE: Choice(_MUON),
    "adamw-5e-4": Choice(("--policy.optimizer_lr=5e-4",), 0.87),
    "adamw-2e-3": Choice(("--policy.optimizer_lr=2e-3",), 0.87),
    "half-depth": Choice((*_MUON, "--policy.backbone_depth=2"), 0.88),
    "three-quarters-depth": Choice((*_MUON, "--policy.backbone_depth=3"), 0.93),
    "flow-2": Choice((*_MUON, "--policy.flow_samples=2"), 0.76),
    "flow-8": Choice((*_MUON, "--policy.flow_samples=8"), 1.51),
    "batch-8": Choice(_MUON, 0.58, 8),
    "batch-32": Choice(_MUON, 1.84, 32),
    "chunk-8": Choice((*_MUON, "--policy.chunk_size=8"), 0.8),
    "chunk-32": Choice((*_MUON, "--policy.chunk_size=32"), 1.45),
    "small-expert": Choice(
        (*_MUON, "--policy.expert_width=128", "--policy.expert_depth=4", "--policy.expert_heads=4"), 0.63
    ),
    "large-expert": Choice(
        (*_MUON, "--policy.expert_width=256", "--policy.expert_depth=8", "--policy.expert_heads=8"), 1.58
    ),
    "uniform-times": Choice((*_MUON, "--policy.time_alpha=1")),
}


@dataclass
class SampleEfficiencyConfig:
    """Flags of this comparison.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again.
        choices: of `CHOICES`, beside the reference.
        seeds: trainings of each choice, and of the reference.
        steps: of the reference.
        task: that is demonstrated and rolled out.
        episodes: demonstrations.
        rollouts: scenes for each training.
        samples: questions for each training.
    """

    output_dir: Path = Path("outputs/sample_efficiency")
    choices: list[str] = field(
        default_factory=lambda: ["adamw-5e-4", "adamw-2e-3", "half-depth", "three-quarters-depth"]
    )
    seeds: int = 3
    steps: int = 600
    task: str = "reach"
    episodes: int = 400
    rollouts: int = 50
    samples: int = 400


def sample_efficiency(config: SampleEfficiencyConfig) -> Path:
    """Run what has not been run, and write the table.

    Raises:
        AegisError: no such choice, a folder of other flags, or a stage that failed.
    """
    cli.require_at_least(config, seeds=1, steps=1, episodes=1, rollouts=1, samples=1)
    if unknown := [name for name in config.choices if name not in CHOICES]:
        raise AegisError(f"--choices has {unknown[0]}: it takes {', '.join(CHOICES)}.")
    root = config.output_dir
    with claimed(root, "setting.json", _setting(config)):
        plan = efficiency_plan(config)
        plan.carry_out(lambda jobs, title: run_jobs(jobs, at_once=_AT_ONCE, title=title))
        text = _table(config, plan).markdown()
        with atomic_write(root / "table.md") as beside:
            beside.write_text(f"{text}\n")
    print(f"{text}\nwrote {root / 'table.md'}")
    return root / "table.md"


def efficiency_plan(config: SampleEfficiencyConfig) -> Plan:
    """The demonstrations, then a seed of every choice after the other."""
    data = config.output_dir / "data"
    recording = catalogue.recording("recording", data, task=config.task, episodes=config.episodes, seed=0)
    runs = [_run(config, name, seed) for seed in range(config.seeds) for name in _names(config)]
    phases = {
        "demonstrations": lambda: [alone(recording, config.output_dir)],
        "trainings": lambda: [run.job for run in runs],
    }
    return Plan(config.output_dir, _setting(config), phases, lambda: runs)


def _run(config: SampleEfficiencyConfig, name: str, seed: int) -> Run:
    choice, root = CHOICES[name], config.output_dir
    title, steps = _title(name, seed), _steps(config, choice)
    folder = root / "runs" / title
    checkpoint = catalogue.last_checkpoint(folder / "training", steps)
    stages = [
        catalogue.training(
            f"{title}-training",
            folder / "training",
            dataset=root / "data",
            steps=steps,
            batch_size=choice.batch_size,
            seed=seed,
            saves=1,
            device="cpu",
            flags=[
                "--policy.protection=aegis",
                f"--policy.optimizer_lr_backbone={LR_BACKBONE}",
                *choice.flags,
            ],
            cost=costs.training("aegis", steps=config.steps, batch_size=16),
            last_only=True,
        ),
        catalogue.rollouts(
            f"{title}-rollouts",
            folder / "rollouts",
            checkpoint=checkpoint,
            task=config.task,
            split="train",
            episodes=config.rollouts,
            seed=_ROLLOUT_SEED,
            device="cpu",
        ),
        catalogue.questions(
            f"{title}-vqa",
            folder / "vqa",
            checkpoint=checkpoint,
            samples=config.samples,
            split="val",
            device="cpu",
        ),
    ]
    return Run(title, "aegis", LR_BACKBONE, seed, folder, root / "logs", stages)


def _table(config: SampleEfficiencyConfig, plan: Plan) -> Table:
    """Each choice by success, by its difference to the reference on the same scenes and seeds, and by answers."""
    runs = {name: _results(config, plan, name) for name in _names(config)}
    reference = _success(runs[REFERENCE], config)
    rows = []
    for name, found in runs.items():
        success, scenes = _success(found, config), Resampling(config.seeds, count=config.rollouts)
        over = success - reference
        answers = np.array([bits(run.measured["vqa"]["correct"]) for run in found])
        questions = Resampling(config.seeds, groups_N=found[0].measured["vqa"]["scenes"])
        loss = mean(np.mean(run.measured["training"]["flow_loss"]["values"][-2:]) for run in found)
        minutes = mean(run.seconds["training"] for run in found) / 60
        rows.append(
            [
                name,
                str(_steps(config, CHOICES[name])),
                f"{minutes:.1f}",
                f"{loss:.3f}",
                rate(rate_estimate(scenes.means(success), scenes.groups)),
                "" if name == REFERENCE else change(change_estimate(scenes.means(over), over)),
                rate(rate_estimate(questions.means(answers), questions.groups)),
            ]
        )
    header = ["choice", "steps", "minutes", "flow loss", "success %", "over reference", "answers %"]
    return Table(header, rows)


def _results(config: SampleEfficiencyConfig, plan: Plan, name: str) -> list[RunFile]:
    return [plan.result(_title(name, seed)) for seed in range(config.seeds)]


def _success(runs: Sequence[RunFile], config: SampleEfficiencyConfig) -> Array:
    return np.array([bits(run.measured["rollouts"][config.task]) for run in runs])


def _names(config: SampleEfficiencyConfig) -> list[str]:
    return list(dict.fromkeys([REFERENCE, *config.choices]))


def _title(name: str, seed: int) -> str:
    return f"{name}-{seed}"


def _steps(config: SampleEfficiencyConfig, choice: Choice) -> int:
    return max(1, round(config.steps / choice.step))


def _setting(config: SampleEfficiencyConfig) -> dict[str, object]:
    """What all runs in the folder share: further choices and seeds may be added to them."""
    return plain(
        {key: value for key, value in asdict(config).items() if key not in ("output_dir", "choices", "seeds")}
    )


def main() -> None:
    cli.run(SampleEfficiencyConfig, sample_efficiency)


if __name__ == "__main__":
    main()
