"""`aegis-baseline`: what an arm reaches that ignores its instruction, in the scenes in which a policy is rolled out.

Where a policy does no better, its success does not say that it listens. Only the tabletop can be asked this way: its
scenes hold several objects of which one is named.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aegis_envs.tabletop.baselines import ARMS, named_shares, success_shares
from aegis_envs.tabletop.env import seeded_episode
from aegis_envs.tabletop.episodes import check_split, retarget
from aegis_envs.tabletop.tasks import Episode, parse_tasks
from aegis_eval.commands.swap import look_alike
from aegis_eval.results.baselines import ABOUT, ABOUT_EXPERT, EXPERT, Baseline, share_estimate
from aegis_eval.results.compared import Compared
from aegis_eval.results.provenance import provenance
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import rate
from aegis_policy.support import cli
from aegis_policy.support.json_files import write_json


@dataclass
class BaselineConfig:
    """Flags of `aegis-baseline`.

    Attributes:
        task: tabletop task, or several with commas, or all.
        split: of the tabletop: `train`, `test` or `unseen`.
        episodes: scenes of each task.
        seed: of the first scene, as `lerobot-eval` counts them.
        output: a JSON file, replaced once the new one is complete; `aegis-report` shows it beside the runs' folders.
    """

    task: str = "reach"
    split: str = "test"
    episodes: int = 100
    seed: int = 1000
    output: Path = Path("outputs/baseline.json")


def main() -> None:
    """Entry point of `aegis-baseline`."""
    cli.run(BaselineConfig, baseline, file="output")


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


def measured(
    episodes: Mapping[str, int], splits: Sequence[str], seed: int, pairs: Mapping[str, int]
) -> dict[str, Baseline]:
    """Every arm, the expert too, in the scenes of a comparison.

    Args:
        episodes: task -> initial states of each split.
        splits: of the tabletop.
        seed: of the first scene.
        pairs: task -> scenes of `aegis-swap`, from the same seed on.
    """
    success = {
        split: {
            task: success_shares(task, split, range(seed, seed + count)) for task, count in episodes.items()
        }
        for split in splits
    }
    named = {task: named_shares(_swapped(task, seed, count)) for task, count in pairs.items()}
    return {
        name: Baseline(
            name,
            {
                split: {task: shares[name] for task, shares in tasks.items()}
                for split, tasks in success.items()
            },
            {task: shares[name] for task, shares in named.items()},
        )
        for name in ARMS
    }


def of_comparison(compared: Compared) -> list[Baseline]:
    """The arms that ignore their instruction, in the scenes of a comparison that was written without them."""
    run = compared.runs[0]
    found = measured(
        {task: len(outcomes) for task, outcomes in run.rollouts["test"].items()},
        list(run.rollouts),
        compared.provenance["seed"],
        {task: counts["pairs"] for task, counts in run.swaps.items()},
    )
    return [arm for name, arm in found.items() if name != EXPERT]


def _swapped(task: str, seed: int, pairs: int) -> list[Episode]:
    """The rollouts of `aegis-swap`: each scene with its own target and with the one most like it."""
    episodes = [seeded_episode(task, "test", seed + pair) for pair in range(pairs)]
    return [each for own in episodes for each in (own, retarget(own, look_alike(own.scene, own.target)))]


if __name__ == "__main__":
    main()
