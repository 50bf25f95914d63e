"""The work of `aegis-compare`: a plan of runs, carried out here or on Ray, and its page."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.compare import CompareConfig
from aegis_eval.experiments.baselines import measured
from aegis_eval.experiments.cameras import check_cameras, names_in
from aegis_eval.experiments.comparison import ROLLOUT_SEED, ComparisonPlan, learning_parts
from aegis_eval.experiments.configurations import check_configurations
from aegis_eval.experiments.folder import claimed, plain
from aegis_eval.experiments.launchers import run_jobs, run_jobs_on_ray
from aegis_eval.experiments.stage import Job
from aegis_eval.experiments.start import check_start
from aegis_eval.experiments.texts import check_texts
from aegis_eval.experiments.variants import VARIANTS
from aegis_eval.results.compared import Compared, Questions
from aegis_eval.results.measured import bits, scene_of
from aegis_eval.results.provenance import provenance
from aegis_eval.results.rows import COMPARED_BENCHMARKS, COMPARED_SPLITS, compared_run
from aegis_eval.results.run import read_answers
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json

LAUNCHERS = ("local", "ray")
_FREE = frozenset(
    {"output_dir", "quick", "dry_run", "jobs", "launcher", "cpus", "gpus"}
    | {"protections", "trials", "seeds", "lr_backbone", "lr_grid"}
)
"""Flags that may change from command to command: how to work, and which runs there are."""
_OF_THE_COMPARISON = frozenset(
    {
        "vlm",
        "protection",
        "anchor",
        "anchor_path",
        "optimizer_lr",
        "optimizer_lr_backbone",
        "flow_samples",
        "input_features",
        "device",
    }
)
"""Flags of a policy that `--policy` may not give."""


def compare(config: CompareConfig) -> Path | None:
    """Run what has not been run; write `comparison.json` and the page, and name them.

    Raises:
        AegisError: flags that cannot be, a folder of other flags, or jobs that failed.
    """
    if config.quick:
        cli.shrink(config, protections="none,aegis", seeds=2, episodes=4, steps=4, batch_size=2)
        cli.shrink(config, eval_episodes=2, validation_episodes=1, samples=24, pairs=1, act_scenes=1)
    _check(config)
    given = plain(asdict(config))
    config.output_dir = config.output_dir.resolve()  # workers of a cluster start elsewhere
    config.dataset = config.dataset and config.dataset.resolve()
    config.start = config.start and config.start.resolve()
    setting = plain({key: value for key, value in asdict(config).items() if key not in _FREE})
    plan = ComparisonPlan(config, {**setting, "dataset": given["dataset"]})  # others have it elsewhere
    check_configurations(job for jobs in plan.jobs().values() for job in jobs)
    if config.dry_run:
        later = (config.lr_grid or config.trials) and not plan.chosen()
        line = "and, once these are chosen, a run of each protection and seed as it was best"
        print(plan.describe(config.jobs if config.launcher == "local" else 1, line if later else ""))
        return None
    with claimed(config.output_dir, "setting.json", setting):
        started = time.monotonic()
        plan.carry_out(lambda jobs, title: _launch(config, jobs, title))
        described = provenance(ROLLOUT_SEED, time.monotonic() - started)
        results = {"config": given, **_collected(config, plan), "provenance": described}
        write_json(config.output_dir / "comparison.json", results, indent=None)
        from aegis_eval.pages.comparison import write_comparison  # brings matplotlib, which draws results

        return write_comparison(Compared.of(results), config.output_dir, runs=config.output_dir / "runs")


def _collected(config: CompareConfig, plan: ComparisonPlan) -> dict[str, Any]:
    """What was found, from the result files of the runs; the arms are moved through their initial states here."""
    tasks = parse_tasks(config.task)
    expert, *deaf = measured(
        dict.fromkeys(tasks, config.eval_episodes),
        COMPARED_SPLITS,
        ROLLOUT_SEED,
        dict.fromkeys(tasks, config.pairs),
    ).values()
    return {
        "protections": {
            name: list(VARIANTS[name].flags)
            for name in dict.fromkeys(key.protection for key in plan.reported_keys())
        },
        "expert": {
            split: {task: bits(shares) for task, shares in by_task.items()}
            for split, by_task in expert.success.items()
        },
        "baselines": [asdict(arm) for arm in deaf],
        "questions": {
            name: asdict(_questions(plan.answers_folder(name, "test"))) for name in COMPARED_BENCHMARKS
        },
        "runs": [asdict(compared_run(plan.result(key.name))) for key in plan.reported_keys()],
        "tuned": plan.chosen_lrs(),
        "tuning": [asdict(each) for each in plan.validations()],
    }


def _questions(folder: Path) -> Questions:
    answers = read_answers(folder)
    return Questions(
        types=[answer["type"] for answer in answers],
        scenes=[scene_of(answer["id"]) for answer in answers],
        pretrained=bits(answer["correct"] for answer in answers),
    )


def _check(config: CompareConfig) -> None:
    cli.require_at_least(
        config,
        seeds=1,
        episodes=1,
        steps=1,
        batch_size=1,
        eval_episodes=1,
        validation_episodes=1,
        samples=1,
        pairs=1,
        act_scenes=0,
        curve_seeds=0,
        jobs=1,
        cpus=1,
        gpus=0,
    )
    if config.launcher not in LAUNCHERS:
        raise AegisError(f"--launcher={config.launcher} is unknown: choose {' or '.join(LAUNCHERS)}.")
    if unknown := [name for name in names_in(config.protections) if name not in VARIANTS]:
        raise AegisError(f"--protections: {unknown[0]} is unknown; there are: {', '.join(VARIANTS)}.")
    if fixed := [flag for flag in config.policy if flag.split("=")[0] in _OF_THE_COMPARISON]:
        raise AegisError(
            f"--policy={fixed[0]} is for the comparison to set: --protections names protections, --lr, --lr_backbone "
            "and --lr_grid the learning rates, --vlm, --flow_samples, --cameras and --device the rest."
        )
    if min([config.lr, config.lr_backbone, *config.lr_grid]) <= 0:
        raise AegisError("--lr, --lr_backbone and --lr_grid must be positive.")
    if config.lr_grid and config.lr_backbone not in config.lr_grid:
        raise AegisError(
            f"--lr_grid={config.lr_grid} must hold --lr_backbone={config.lr_backbone}, the rate common to all."
        )
    if config.trials is not None and config.lr_grid:
        raise AegisError("--trials has the learning rates of every protection: leave --lr_grid out.")
    if outside := [alpha for alpha in config.alphas if not 0 <= alpha < 1]:
        raise AegisError(f"--alphas has {outside[0]}: each must be at least 0 and below 1, the run itself.")
    check_texts(config.texts)
    if config.start is not None:
        tried = [key.protection for keys in ComparisonPlan(config, {}).trials.values() for key in keys]
        check_start(config.start, vlm=config.vlm, variants=tried, policy=config.policy)
    learns = learning_parts(config.policy)
    if learns and "stop_gradient" in names_in(config.protections):
        raise AegisError(
            f"--policy={learns[0]} cannot be under stop_gradient, which lets no gradient into the VLM: leave one of "
            "them out."
        )
    parse_tasks(config.task, "--task")
    if config.dataset is not None and not (config.dataset / "meta" / "info.json").is_file():
        raise AegisError(f"--dataset={config.dataset} holds no LeRobotDataset: record or name another one.")
    check_cameras(config.cameras, config.dataset)


def _launch(config: CompareConfig, jobs: Sequence[Job], title: str) -> Mapping[str, AegisError]:
    if config.launcher == "ray":
        return run_jobs_on_ray(jobs, cpus=config.cpus, gpus=config.gpus, title=title)
    return run_jobs(jobs, at_once=config.jobs, title=title)
