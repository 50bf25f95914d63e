"""`aegis-action-error`: how far are a policy's chunks from demonstrations it was not trained on?

Cheaper than rollouts and free of their luck: at frames of held-out episodes the policy samples a chunk, from the same
noise for every policy, and the mean squared difference to what the demonstrator did is taken in the normalised units
of the policy's own training data.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class DatasetSource:
    """The held-out demonstrations: a LeRobotDataset by its id, or in a folder."""

    repo_id: str | None = None
    root: Path | None = None


@dataclass
class ActionErrorConfig:
    """Flags of `aegis-action-error`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        dataset: `--dataset.repo_id`, `--dataset.root`: demonstrations of the same robot, not those trained on.
        frames: at how many frames, spread evenly over all, a chunk is sampled.
        draws: chunks sampled at each of them.
        seed: of the noise.
        batch_size: frames at a time.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        output: a JSON file, replaced once the new one is complete.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    dataset: DatasetSource = field(default_factory=DatasetSource)
    frames: int = 1000
    draws: int = 2
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    output: Path = Path("outputs/action_error.json")


def main() -> None:
    """Entry point of `aegis-action-error`."""
    cli.run(ActionErrorConfig, _work, file="output")


def _work(config: ActionErrorConfig) -> None:
    from aegis_eval.commands.work.action_error import action_error

    action_error(config)


if __name__ == "__main__":
    main()
