"""Do both skills survive on Meta-World? A plan: demonstrations, then a run under each protection, and one page.

    python benchmarks/metaworld_skills.py [--protections=none,aegis,freeze] [--output_dir=outputs/metaworld] [--help]

The embedded VLM is trained on demonstrations of `--tasks` under each of `--protections` (`--jobs` at once), rolled out
in `--rollouts` new scenes a task, and asked `--samples` questions. Given again, the command goes on where it stopped.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.anchors import anchor_flags, anchor_jobs
from aegis_eval.experiments.cameras import names_in
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_jobs
from aegis_eval.experiments.plan import Plan, alone
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.variants import VARIANTS
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError

_WORLD = catalogue.World("aegis_metaworld", ("--env.image_size=96",))
_ROLLOUT_SEED = 1000
_BATCH_SIZE = 8
_TASKS = "reach-v3,drawer-close-v3,button-press-topdown-v3,window-open-v3,door-open-v3"


@dataclass
class MetaworldConfig:
    """Flags of this benchmark.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again, and protections may be added.
        protections: names in `aegis_eval.experiments.variants.VARIANTS`, with commas.
        tasks: of Meta-World, with commas.
        episodes: demonstrations to record.
        steps: of each training.
        rollouts: new scenes of each task.
        samples: questions asked of each backbone.
        seed: of demonstrations and trainings.
        jobs: trainings at once.
    """

    output_dir: Path = Path("outputs/metaworld")
    protections: str = "none,aegis,freeze"
    tasks: str = _TASKS
    episodes: int = 250
    steps: int = 3000
    rollouts: int = 20
    samples: int = 1000
    seed: int = 0
    jobs: int = 2


def metaworld_plan(config: MetaworldConfig) -> Plan:
    """The jobs: demonstrations, anchors that some protections need, a run of each protection."""
    root, variants = config.output_dir, names_in(config.protections)
    recording = catalogue.recording(
        "recording",
        root / "data",
        task=config.tasks,
        episodes=config.episodes,
        seed=config.seed,
        split=None,
        world=_WORLD,
        flags=["--noise=0.3"],
    )
    runs = [_run(config, variant) for variant in variants]
    anchors = partial(anchor_jobs, root, variants, data=root / "data", cameras=None, device="cpu")
    phases = {
        "recordings": lambda: [alone(recording, root)],
        "anchors": anchors,
        "runs": lambda: [run.job for run in runs],
    }
    return Plan(root, _setting(config), phases, lambda: runs)


def _run(config: MetaworldConfig, variant: str) -> Run:
    root = config.output_dir
    folder = root / variant.replace(" ", "_")
    checkpoint = catalogue.last_checkpoint(folder / "training", config.steps)
    stages = [
        catalogue.training(
            "training",
            folder / "training",
            dataset=root / "data",
            steps=config.steps,
            batch_size=_BATCH_SIZE,
            seed=config.seed,
            saves=6,
            device="cpu",
            flags=[
                *VARIANTS[variant].flags,
                *anchor_flags(root, variant),
                "--policy.optimizer_lr=1e-3",
                "--policy.optimizer_lr_backbone=1e-3",
                "--policy.n_action_steps=8",
                "--policy.expert_width=128",
                "--policy.expert_depth=4",
                "--policy.expert_heads=4",
            ],
            cost=costs.training(variant, steps=config.steps, batch_size=_BATCH_SIZE),
        ),
        catalogue.rollouts(
            "rollouts",
            folder / "rollouts",
            checkpoint=checkpoint,
            task=config.tasks,
            tasks=len(names_in(config.tasks)),
            episodes=config.rollouts,
            seed=_ROLLOUT_SEED,
            device="cpu",
            world=_WORLD,
            at_once=10,
        ),
        catalogue.questions(
            "vqa", folder / "vqa", checkpoint=checkpoint, samples=config.samples, split="test", device="cpu"
        ),
    ]
    return Run(folder.name, variant, 1e-3, config.seed, folder, folder / "logs", stages)


def metaworld(config: MetaworldConfig) -> Path:
    """Run what has not been run, and write the page.

    Raises:
        AegisError: flags that cannot be, a folder of other flags, or jobs that failed.
    """
    cli.require_at_least(config, episodes=1, steps=1, rollouts=1, samples=1, jobs=1)
    if unknown := [name for name in names_in(config.protections) if name not in VARIANTS]:
        raise AegisError(f"--protections: {unknown[0]} is unknown; there are: {', '.join(VARIANTS)}.")
    with claimed(config.output_dir, "setting.json", _setting(config)):
        metaworld_plan(config).carry_out(lambda jobs, title: run_jobs(jobs, at_once=config.jobs, title=title))
        return report(ReportConfig(config.output_dir))


def _setting(config: MetaworldConfig) -> dict[str, object]:
    free = {"output_dir", "protections", "jobs"}
    return plain({key: value for key, value in asdict(config).items() if key not in free})


def main() -> None:
    cli.run(MetaworldConfig, metaworld)


if __name__ == "__main__":
    main()
