"""The work of `aegis-baseline`: every arm in every scene, and a table."""

import time
from dataclasses import asdict
from pathlib import Path

from aegis_envs.tabletop.baselines import ARMS, success_shares
from aegis_envs.tabletop.episodes import check_split
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.commands.baseline import BaselineConfig
from aegis_eval.results.baselines import ABOUT, ABOUT_EXPERT, share_estimate
from aegis_eval.results.provenance import provenance
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import rate
from aegis_policy.support import cli
from aegis_policy.support.json_files import write_json


def baseline(config: BaselineConfig) -> Path:
    """Print the success of every arm by task with its interval, and write what it did in every scene.

    Raises:
        AegisError: flags that name no task or split, or ask for nothing.
    """
    started = time.monotonic()
    cli.require_at_least(config, episodes=1, seed=0)
    tasks, split = parse_tasks(config.task, "--task"), check_split(config.split, "--split")
    seeds = range(config.seed, config.seed + config.episodes)
    found = {task: success_shares(task, split, seeds) for task in tasks}
    estimates = {name: {task: share_estimate(found[task][name]) for task in tasks} for name in ARMS}
    rows = [[name, *(rate(estimates[name][task]) for task in tasks)] for name in ARMS]
    print(f"{ABOUT} {ABOUT_EXPERT}\n\n{Table([f'success, {split} %', *tasks], rows).text()}\n")
    described = provenance(config.seed, time.monotonic() - started)
    written = {
        "split": split,
        "arms": {name: {task: found[task][name] for task in tasks} for name in ARMS},
        "success": {
            name: {task: asdict(each) for task, each in by_task.items()}
            for name, by_task in estimates.items()
        },
        "provenance": described,
    }
    write_json(config.output, written)
    print(f"wrote {config.output}")
    return config.output
