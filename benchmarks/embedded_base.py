"""The base policy that comes with the package, from nothing: trained, shrunk to what is shipped, and measured.

    python benchmarks/embedded_base.py [--steps=6000] [--further_steps=1500] [--output_dir=outputs/embedded_base]

Demonstrations of `reach` and `pick` are recorded and the embedded VLM is trained on them under AEGIS, in two parts: the
second has the ranges of states and actions to normalise by, which other tasks share, in place of means and deviations,
and Muon. The last checkpoint is written to `tabletop-base` as it is shipped. Of that, 100 test scenes a task are rolled
out, instructions swapped, questions asked. Given again, the command goes on where it stopped. The folder is then copied
to `aegis_policy/pretrained`.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.baseline import BaselineConfig
from aegis_eval.commands.work.baseline import baseline
from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_in_turn
from aegis_eval.experiments.plan import Plan
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.pages.report import write_report
from aegis_eval.results.baselines import Shares, read_baselines, share_estimate
from aegis_eval.results.provenance import provenance
from aegis_eval.results.run import RunSummary
from aegis_eval.results.training_log import METRICS
from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import rate
from aegis_policy.checkpoint.card import CARD_FILE
from aegis_policy.checkpoint.checks import ANCHOR_FILE, CONFIG_FILE, TRAINING_CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.checkpoint.listing import LIST_FILE, write_list
from aegis_policy.support import cli
from aegis_policy.support.files import atomic_directory, atomic_write
from aegis_policy.support.json_files import read_json, write_json

TASKS = "reach,pick"
BATCH_SIZE, LR_BACKBONE = 16, 3e-4
FIRST = ["--policy.optimizer_lr=2e-3"]
SECOND = [
    "--policy.expert_optimizer=muon",
    "--policy.optimizer_lr=4e-3",
    '--policy.normalization_mapping={"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}',
]
"""Flags of the two parts of the training."""
_ROLLOUT_SEED = 1000
_ABOUT, _USE = "## What it does", "## Use"
"""Headings of its card."""
_NOT_SHIPPED = (ANCHOR_FILE, TRAINING_CONFIG_FILE, LIST_FILE)
"""The embedded VLM brings the anchor; the others name files of the machine, or what is not there."""


@dataclass
class EmbeddedBaseConfig:
    """Flags of this recipe.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again.
        steps, further_steps: of the two parts of the training.
        episodes: demonstrations to record.
        rollouts: test scenes of each task.
        samples: questions asked.
        seed: of demonstrations and the first part; the second has the next one.
    """

    output_dir: Path = Path("outputs/embedded_base")
    steps: int = 6000
    further_steps: int = 1500
    episodes: int = 1000
    rollouts: int = 100
    samples: int = 2000
    seed: int = 0


def embedded_base(config: EmbeddedBaseConfig) -> Path:
    """Run what has not been run, and write the page.

    Raises:
        AegisError: a folder of other flags, or a stage that failed.
    """
    cli.require_at_least(config, steps=1, further_steps=1, episodes=1, rollouts=1, samples=1)
    root = config.output_dir
    with claimed(root, "setting.json", _setting(config)):
        Plan(root, _setting(config), {"training": lambda: [_training(config)]}, list).carry_out(run_in_turn)
        if not _shipped(config).is_dir():
            ship(_checkpoint(config, "second"), _shipped(config))
        base_plan(config).carry_out(run_in_turn)
        run = RunSummary.read(
            "embedded base",
            eval_dir=root / "rollouts",
            vqa_dir=root / "vqa",
            training_log=root / "second" / METRICS,
            swap=root / "swap.json",
        )
        arms = read_baselines(
            baseline(BaselineConfig(TASKS, "test", config.rollouts, _ROLLOUT_SEED, root / "baseline.json"))
        )
        write_card(_shipped(config) / CARD_FILE, run, arms, config)
        page = write_report(
            root / "report.html",
            [run],
            described=provenance(config.seed, 0.0, config=plain(asdict(config))),
            baselines=arms,
        )
    print(f"wrote {_shipped(config)} and {page}")
    return page


def base_plan(config: EmbeddedBaseConfig) -> Plan:
    """A job that makes the policy and, once it has been shrunk, one that measures what is shipped."""
    measuring = _measuring(config)
    stages = [*_training(config).stages, *measuring.stages]
    run = Run(
        "embedded-base", "subspace", LR_BACKBONE, config.seed, config.output_dir, measuring.logs, stages
    )
    phases = {"training": lambda: [_training(config)], "measurements": lambda: [measuring]}
    return Plan(config.output_dir, _setting(config), phases, lambda: [run])


def _training(config: EmbeddedBaseConfig) -> Job:
    root = config.output_dir
    stages = [
        catalogue.recording(
            "recording", root / "data", task=TASKS, episodes=config.episodes, seed=config.seed
        ),
        _part("first", config, config.steps, config.seed, FIRST, None),
        _part("second", config, config.further_steps, config.seed + 1, SECOND, _checkpoint(config, "first")),
    ]
    return Job("training", stages, root / "logs")


def _part(
    name: str, config: EmbeddedBaseConfig, steps: int, seed: int, flags: list[str], start: Path | None
) -> Stage:
    root = config.output_dir
    return catalogue.training(
        name,
        root / name / "training",
        dataset=root / "data",
        steps=steps,
        batch_size=BATCH_SIZE,
        seed=seed,
        saves=4,
        device="cpu",
        flags=[*flags, f"--policy.optimizer_lr_backbone={LR_BACKBONE}"],
        cost=costs.training("subspace", steps=steps, batch_size=BATCH_SIZE),
        start=start,
    )


def _measuring(config: EmbeddedBaseConfig) -> Job:
    root, checkpoint, tasks = config.output_dir, _shipped(config), len(parse_tasks(TASKS, "task"))
    stages = [
        catalogue.rollouts(
            "rollouts",
            root / "rollouts",
            checkpoint=checkpoint,
            task=TASKS,
            tasks=tasks,
            split="test",
            episodes=config.rollouts,
            seed=_ROLLOUT_SEED,
            device="cpu",
        ),
        catalogue.swap(
            "swap",
            root / "swap.json",
            checkpoint=checkpoint,
            task=TASKS,
            tasks=tasks,
            pairs=max(1, config.rollouts // 2),
            seed=0,
            device="cpu",
        ),
        catalogue.questions(
            "vqa", root / "vqa", checkpoint=checkpoint, samples=config.samples, split="test", device="cpu"
        ),
    ]
    return Job("measurements", stages, root / "logs")


def ship(checkpoint: Path, out: Path) -> None:
    """Write a checkpoint of the embedded VLM in half its space: weights in 16 bits, no anchor, no paths.

    What trains goes on in float32, whatever it was read from.
    """
    with atomic_directory(out) as folder:
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*_NOT_SHIPPED))
        with safe_open(checkpoint / WEIGHTS_FILE, "pt") as held:
            metadata = held.metadata()
            weights = {name: _in_16_bits(held.get_tensor(name)) for name in held.keys()}  # noqa: SIM118
        save_file(weights, folder / WEIGHTS_FILE, metadata)
        config = read_json(folder / CONFIG_FILE)
        write_json(folder / CONFIG_FILE, {**config, "anchor_info": None, "pretrained_path": None})
        write_list(folder)


def write_card(card: Path, run: RunSummary, arms: Shares, config: EmbeddedBaseConfig) -> None:
    """Say in a checkpoint's card, before how it is used, what the policy is for and what it does."""
    assert run.rollouts is not None
    rows = [
        [
            task.task,
            rate(Estimate(task.rate, task.ci)),
            rate(share_estimate(arms["nearest object"][task.task])),
            rate(Estimate(swap.followed_rate, swap.followed_ci)),
        ]
        for task in run.rollouts.tasks
        for swap in run.swaps
        if swap.task == task.task
    ]
    header = [
        "task",
        "success %",
        "an arm that goes to the nearest object, success %",
        "goes to what is named %",
    ]
    about = f"""{_ABOUT}

A base to fine-tune with demonstrations of another task: `lerobot-train --policy.path=THIS_FOLDER`. It learned from
{config.episodes} demonstrations of `{TASKS}` in float32, in {config.steps} steps by AdamW and {config.further_steps} by
Muon; the weights here have 16 bits. Made and measured by
`python benchmarks/embedded_base.py --steps={config.steps} --further_steps={config.further_steps}`:

{Table(header, rows).markdown()}

Brackets are 95 % intervals, of {config.rollouts} test scenes a task. Last column: two objects of a scene named in turn
(`aegis-swap`).

"""
    text = card.read_text()
    kept, _, use = text.partition(_USE)
    with atomic_write(card) as beside:
        beside.write_text(kept.partition(_ABOUT)[0] + about + _USE + use)


def _in_16_bits(weight: Tensor) -> Tensor:
    """As bfloat16 where that holds it, as whatever never learned in the embedded VLM; else in float16."""
    brief = weight.bfloat16()
    return brief if torch.equal(brief.to(weight.dtype), weight) else weight.half()


def _shipped(config: EmbeddedBaseConfig) -> Path:
    return config.output_dir / "tabletop-base"


def _checkpoint(config: EmbeddedBaseConfig, part: str) -> Path:
    steps = {"first": config.steps, "second": config.further_steps}[part]
    return catalogue.last_checkpoint(config.output_dir / part / "training", steps)


def _setting(config: EmbeddedBaseConfig) -> dict[str, object]:
    return plain({key: value for key, value in asdict(config).items() if key != "output_dir"})


def main() -> None:
    cli.run(EmbeddedBaseConfig, embedded_base)


if __name__ == "__main__":
    main()
