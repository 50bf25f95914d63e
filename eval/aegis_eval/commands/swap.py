"""`aegis-swap`: does a policy go to the object that is named? Every scene twice, with two look-alike targets.

Only the tabletop can be asked this way.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


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
    cli.run(SwapConfig, _work, file="output")


def _work(config: SwapConfig) -> None:
    from aegis_eval.commands.work.swap import swap

    swap(config)


if __name__ == "__main__":
    main()
