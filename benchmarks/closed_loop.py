"""Does a policy trained on two cores act, does it listen, and what does it still answer? A plan of five commands.

    python benchmarks/closed_loop.py [--anchor=subspace] [--minutes=60] [--output_dir=outputs/closed_loop] [--help]

Demonstrations of reach and pick-up are recorded, the embedded VLM is trained under AEGIS on two processes for at most
`--minutes`, 100 test scenes a task are rolled out, instructions swapped, questions asked. Given again, the command goes
on where it stopped. A training that runs out of time is judged by its last checkpoint, saved at most 200 steps before.
"""

from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path

from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_in_turn
from aegis_eval.experiments.plan import Plan
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.pages.report import write_report
from aegis_eval.results.provenance import provenance
from aegis_eval.results.run import RunSummary
from aegis_eval.results.training_log import METRICS
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError

_TASKS = "reach,pick"
_ROLLOUT_SEED = 1000
_BATCH_SIZE, _FLOW_SAMPLES = 16, 2
_SAVE_STEPS = 200
"""How much of a training that runs out of time may be lost."""


@dataclass
class ClosedLoopConfig:
    """Flags of this benchmark.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again.
        anchor: variant of `aegis`: `subspace`, or `gaussian` for the paper's.
        minutes: that the training may take, all its parts together.
        steps: of the training.
        episodes: demonstrations to record.
        seed: of demonstrations and training.
    """

    output_dir: Path = Path("outputs/closed_loop")
    anchor: str = "subspace"
    minutes: float = 60
    steps: int = 4500
    episodes: int = 2000
    seed: int = 0


def closed_loop_plan(config: ClosedLoopConfig) -> Plan:
    """One job: the demonstrations, then everything about the one run."""
    root, logs = config.output_dir, config.output_dir / "logs"
    recording = catalogue.recording(
        "recording", root / "data", task=_TASKS, episodes=config.episodes, seed=config.seed
    )
    training = catalogue.training(
        "training",
        root / "training",
        dataset=root / "data",
        steps=config.steps,
        batch_size=_BATCH_SIZE,
        seed=config.seed,
        saves=ceil(config.steps / _SAVE_STEPS),
        device="cpu",
        flags=[
            *VARIANTS[config.anchor].flags,
            "--policy.optimizer_lr=5e-4",
            "--policy.optimizer_lr_backbone=2e-4",
            f"--policy.flow_samples={_FLOW_SAMPLES}",
        ],
        processes=2,
        cost=costs.training(
            config.anchor, steps=config.steps, batch_size=2 * _BATCH_SIZE, flow_samples=_FLOW_SAMPLES
        ),
    )
    checkpoint = root / "training" / "checkpoints" / "last" / "pretrained_model"
    stages = [
        replace(training, limit=60 * config.minutes, result=logs / "training.json"),
        catalogue.rollouts(
            "rollouts",
            root / "rollouts",
            checkpoint=checkpoint,
            task=_TASKS,
            tasks=2,
            split="test",
            episodes=100,
            seed=_ROLLOUT_SEED,
            device="cpu",
        ),
        catalogue.swap(
            "swap",
            root / "swap.json",
            checkpoint=checkpoint,
            task=_TASKS,
            tasks=2,
            pairs=50,
            seed=0,
            device="cpu",
        ),
        catalogue.questions(
            "vqa", root / "vqa", checkpoint=checkpoint, samples=1200, split="test", device="cpu"
        ),
    ]
    run = Run(f"{config.anchor}-seed{config.seed}", config.anchor, 2e-4, config.seed, root, logs, stages)
    job = Job("closed loop", [recording, *stages], logs)
    return Plan(root, _setting(config), {"closed loop": lambda: [job]}, lambda: [run])


def closed_loop(config: ClosedLoopConfig) -> Path:
    """Run what has not been run, and write the page.

    Raises:
        AegisError: an unknown anchor, a folder of other flags, or a stage that failed.
    """
    cli.require_at_least(config, steps=1, episodes=1)
    if config.anchor not in VARIANTS:
        raise AegisError(f"--anchor={config.anchor} is unknown; there are: {', '.join(VARIANTS)}.")
    root = config.output_dir
    with claimed(root, "setting.json", _setting(config)):
        closed_loop_plan(config).carry_out(run_in_turn)
        run = RunSummary.read(
            config.anchor,
            eval_dir=root / "rollouts",
            vqa_dir=root / "vqa",
            training_log=root / METRICS,
            swap=root / "swap.json",
        )
        page = write_report(
            root / "report.html", [run], described=provenance(config.seed, 0.0, config=plain(asdict(config)))
        )
    print(f"wrote {page}")
    return page


def _setting(config: ClosedLoopConfig) -> dict[str, object]:
    return plain({key: value for key, value in asdict(config).items() if key != "output_dir"})


def main() -> None:
    cli.run(ClosedLoopConfig, closed_loop)


if __name__ == "__main__":
    main()
