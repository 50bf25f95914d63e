"""`aegis-swap`: does a policy go to the object that is named? Every scene twice, with two look-alike targets."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from aegis_envs.tabletop.episodes import check_split
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_eval.checkpoints import PolicySource
from aegis_eval.results.provenance import provenance
from aegis_eval.results.swap import SwapProbe, policy_controller, probe_controller
from aegis_policy.support import cli
from aegis_policy.support.json_files import write_json


@dataclass
class SwapConfig:
    """Flags of `aegis-swap`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        task: tabletop task, or several with commas, or all.
        split: of the tabletop, `test` or `unseen`.
        pairs: scenes a task, each run with two targets.
        seed: of the scenes and of the policy's noise.
        batch_size: rollouts at a time; another one draws other noise.
        device: `cuda` or `cpu`, by default what the policy was trained on.
        output: a JSON file, replaced once the new one is complete.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    task: str = "reach"
    split: str = "test"
    pairs: int = 50
    seed: int = 0
    batch_size: int = 20
    device: str | None = None
    output: Path = Path("outputs/swap.json")


def main() -> None:
    """Entry point of `aegis-swap`."""
    cli.run(SwapConfig, swap)


def swap(config: SwapConfig) -> Path:
    """Probe every task, print a line each, write counts with their intervals.

    Raises:
        AegisError: flags that name no checkpoint, task or split, or ask for nothing.
    """
    started = time.monotonic()
    cli.require_at_least(config, pairs=1, batch_size=1, seed=0)
    tasks, split = parse_tasks(config.task, "--task"), check_split(config.split, "--split")
    controller = policy_controller(config.policy, config.device)
    results = {}
    for task in tasks:
        probe = probe_controller(
            controller,
            config.pairs,
            task=task,
            split=split,
            seed=config.seed,
            batch_size=config.batch_size,
        )
        print(_sentence(probe))
        results[task] = probe.to_dict()
    described = provenance(config.seed, time.monotonic() - started)
    write_json(config.output, {"tasks": results, "provenance": described})
    print(f"wrote {config.output}")
    return config.output


def _sentence(probe: SwapProbe) -> str:
    low, high = probe.followed_ci
    return (
        f"{probe.task}: {probe.followed} of {2 * probe.pairs} rollouts ended at the named object "
        f"({100 * low:.0f} to {100 * high:.0f} %); the swap changed the object in {probe.changed} of "
        f"{probe.pairs} scenes"
    )


if __name__ == "__main__":
    main()
