"""Does a policy go to the object that is named? Every scene twice, with two look-alike targets.

python benchmarks/instruction_swap.py --policy.path=CHECKPOINT --task=reach --pairs=50 --output=swap.json
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aegis_envs.episodes import check_split
from aegis_envs.errors import TabletopError
from aegis_envs.tasks import parse_tasks
from aegis_eval.provenance import provenance
from aegis_eval.swap_probe import swap_probe
from aegis_eval.vqa import PolicySource
from aegis_policy import cli
from aegis_policy.errors import AegisError
from aegis_policy.files import atomic_write


@dataclass
class SwapConfig:
    """`--policy.path` is the checkpoint; `task` may be a comma list or all; `pairs` scenes a task, run twice."""

    policy: PolicySource = field(default_factory=PolicySource)
    task: str = "reach"
    split: str = "test"
    pairs: int = 50
    seed: int = 0
    device: str | None = None
    output: Path | None = None


def main(config: SwapConfig) -> None:
    """Probe every task, print a line each, and write JSON if asked to."""
    started = time.monotonic()
    if config.policy.path is None:
        raise AegisError("--policy.path is missing: name the `pretrained_model` folder of a checkpoint.")
    if config.pairs < 1:
        raise AegisError(f"--pairs={config.pairs} asks for nothing: give a positive number.")
    try:
        results = _probe(config)
    except TabletopError as error:
        raise AegisError(str(error).replace("--env.", "--")) from error
    if config.output is not None:
        data = {"tasks": results, "provenance": provenance(config.seed, time.monotonic() - started)}
        with atomic_write(config.output) as beside:
            beside.write_text(json.dumps(data, indent=2) + "\n")
        print(f"wrote {config.output}")


def _probe(config: SwapConfig) -> dict[str, Any]:
    assert config.policy.path is not None
    tasks, split = parse_tasks(config.task), check_split(config.split)
    results = {}
    for task in tasks:
        probe = swap_probe(
            config.policy.path, config.pairs, task=task, split=split, seed=config.seed, device=config.device
        )
        low, high = probe.followed_ci
        print(
            f"{task}: {probe.followed} of {2 * probe.pairs} rollouts ended at the named object "
            f"({100 * low:.0f} to {100 * high:.0f} %); the swap changed the object in {probe.changed} of "
            f"{probe.pairs} scenes"
        )
        results[task] = probe.to_dict()
    return results


if __name__ == "__main__":
    cli.run(SwapConfig, main)
