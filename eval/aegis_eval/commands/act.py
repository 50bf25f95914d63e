"""`aegis-act`: can the arm use what the VLM knows? Objects are named by where they are, how many, how large.

Every scene twice, with another object meant, as in `aegis-swap`; the policy's VLM is asked the same in words, about
the picture that the arm begins with. Only the tabletop can be asked this way.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class ActConfig:
    """Flags of `aegis-act`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder), which has learned to `reach`.
        kinds: of `aegis_eval.questions.acted.KINDS`: relation, composed, extreme, count, size.
        scenes: of each kind, each run twice.
        seed: of the scenes and of the policy's noise.
        batch_size: rollouts at a time; another one draws other noise.
        device: `cuda` or `cpu`, by default what the policy was trained on.
        output: a JSON file, replaced once the new one is complete.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    kinds: list[str] = field(default_factory=lambda: ["relation", "composed", "extreme", "count", "size"])
    scenes: int = 50
    seed: int = 0
    batch_size: int = 20
    device: str | None = None
    output: Path = Path("outputs/act.json")


def main() -> None:
    """Entry point of `aegis-act`."""
    cli.run(ActConfig, _work, file="output")


def _work(config: ActConfig) -> None:
    from aegis_eval.commands.work.act import act

    act(config)


if __name__ == "__main__":
    main()
