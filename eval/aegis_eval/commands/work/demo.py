"""The work of `aegis-demo`: a plan of demonstrations and two policies, and its page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from aegis_envs.tabletop.env import seeded_episode
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.baseline import BaselineConfig
from aegis_eval.commands.demo import DemoConfig
from aegis_eval.commands.work.baseline import baseline
from aegis_eval.experiments import catalogue, costs
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_side_by_side
from aegis_eval.experiments.plan import Plan
from aegis_eval.experiments.run import Run
from aegis_eval.experiments.stage import Job, Stage
from aegis_eval.pages.report import write_report
from aegis_eval.results.baselines import Shares, read_baselines, share_estimate
from aegis_eval.results.provenance import provenance
from aegis_eval.results.run import RunSummary
from aegis_eval.results.training_log import METRICS
from aegis_eval.statistics.tables import Table
from aegis_policy.pretrained import EMBEDDED_BASE
from aegis_policy.support import cli

RUNS = {"none": "Unprotected", "aegis": "AEGIS"}
"""Protection -> how the page calls its run."""
_BASE, _BASE_NAME = "base", "Base policy"
"""What both runs begin from: its folder, and how the page calls it."""


def demo(config: DemoConfig) -> Path:
    """Run what has not been run yet, write the page, print its path and a short table.

    Raises:
        AegisError: a stage failed, or `--output_dir` holds a demo made with other flags.
    """
    if config.quick:
        cli.shrink(config, episodes=4, steps=4, batch_size=2, eval_episodes=2, samples=24)
    started = time.monotonic()
    setting = plain({key: value for key, value in asdict(config).items() if key != "output_dir"})
    with claimed(config.output_dir, "demo.json", setting):
        demo_plan(config, setting).carry_out(run_side_by_side)
        return _report(config, started)


def _report(config: DemoConfig, started: float) -> Path:
    root = config.output_dir
    base = RunSummary.read(_BASE_NAME, vqa_dir=root / _BASE / "vqa")
    runs = [base] + [
        RunSummary.read(
            name,
            eval_dir=root / protection / "rollouts",
            vqa_dir=root / protection / "vqa",
            training_log=root / protection / METRICS,
        )
        for protection, name in RUNS.items()
    ]
    seconds = time.monotonic() - started
    arms = read_baselines(
        baseline(
            BaselineConfig(config.task, "test", config.eval_episodes, config.seed, root / "baseline.json")
        )
    )
    page = write_report(
        root / "report.html",
        runs,
        title="AEGIS demo: robot skill and retained knowledge",
        described=provenance(config.seed, seconds, config=plain(asdict(config))),
        baselines=arms,
        told=lambda task, episode: seeded_episode(task, "test", config.seed + episode).instruction,
        videos_per_task=3,
    )
    print(f"\n{_table(runs, arms)}\n\nwrote {page}")
    return page


def demo_plan(config: DemoConfig, setting: Mapping[str, Any]) -> Plan:
    """The demonstrations and what the base policy still answers, then everything about each run, both runs at once."""
    root = config.output_dir
    recording = catalogue.recording(
        "recording", root / "data", task=config.task, episodes=config.episodes, seed=config.seed
    )
    runs = [_run(config, protection) for protection in RUNS]
    phases = {
        "demonstrations": lambda: [
            Job("recording", [recording], root / "logs"),
            Job(_BASE, [_questions(config, _BASE, _BASE_NAME, EMBEDDED_BASE)], root / "logs"),
        ],
        "policies": lambda: [Job(run.variant, list(run.stages), root / "logs") for run in runs],
    }
    return Plan(root, setting, phases, lambda: runs)


def _questions(config: DemoConfig, folder: str, name: str, checkpoint: Path) -> Stage:
    asked = catalogue.questions(
        f"{folder}-vqa",
        config.output_dir / folder / "vqa",
        checkpoint=checkpoint,
        samples=config.samples,
        split="test",
        seed=config.seed,
        device="cpu",
    )
    return _titled(name, asked)


def _titled(name: str, stage: Stage) -> Stage:
    return replace(stage, title=f"{name}: {stage.title}")


def _run(config: DemoConfig, protection: str) -> Run:
    root = config.output_dir
    folder = root / protection
    checkpoint = catalogue.last_checkpoint(folder / "training", config.steps)
    name = RUNS[protection]
    training = [
        catalogue.training(
            f"{protection}-training",
            folder / "training",
            dataset=root / "data",
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            saves=1,
            device="cpu",
            start=EMBEDDED_BASE,
            flags=[
                f"--policy.protection={protection}",
                f"--policy.optimizer_lr_backbone={config.lr_backbone}",
            ],
            cost=costs.training(protection, steps=config.steps, batch_size=config.batch_size),
        ),
        catalogue.rollouts(
            f"{protection}-rollouts",
            folder / "rollouts",
            checkpoint=checkpoint,
            task=config.task,
            tasks=len(parse_tasks(config.task, "--task")),
            split="test",
            episodes=config.eval_episodes,
            seed=config.seed,
            device="cpu",
        ),
    ]
    stages = [
        *(_titled(name, stage) for stage in training),
        _questions(config, protection, name, checkpoint),
    ]
    return Run(protection, protection, config.lr_backbone, config.seed, folder, root / "logs", stages)


def _table(runs: Sequence[RunSummary], arms: Shares) -> str:
    """Success and accuracy of each run with their 95 % intervals, of the pretrained model, and success of the arms."""
    rows = []
    reference = runs[0].vqa and runs[0].vqa["pretrained"]
    if reference:
        rows.append(["Pretrained", "-", _percent(reference["accuracy"], reference["ci"])])
    for run in runs:
        assert run.vqa is not None
        success = "-"
        if run.rollouts is not None:
            overall = run.rollouts.overall
            success = f"{overall.successes}/{overall.episodes} = {_percent(overall.rate, overall.ci)}"
        rows.append([run.name, success, _percent(run.vqa["accuracy"], run.vqa["ci"])])
    for name, by_task in arms.items():
        found = share_estimate(share for shares in by_task.values() for share in shares)
        rows.append([name.capitalize(), _percent(found.value, found.ci), "-"])
    return Table(["", "success on test scenes", "VQA accuracy"], rows).text(right=False)


def _percent(rate: float, interval: Sequence[float]) -> str:
    return f"{rate:.0%} [{interval[0]:.0%}, {interval[1]:.0%}]"
