"""`aegis-merge`: a trained policy whose language weights are led part of the way back to the pretrained ones.

W0 + alpha (W - W0) for every weight of the VLM's decoder layers, after training and without any data (WiSE-FT, arXiv
2109.01903; RETAIN, arXiv 2512.08333, for policies). What is left of the VLM, and the action expert, stays as trained.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class MergeConfig:
    """Flags of `aegis-merge`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        alpha: 1 is the policy as it is, 0 has the pretrained language weights.
        pretrained: the VLM, or one of LeRobot's policies, that the policy was made from, if it is no longer where it
            was.
        output_dir: a new folder, a policy checkpoint like the first.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    alpha: float = 0.8
    pretrained: str | None = None
    output_dir: Path = Path("outputs/merged")


def main() -> None:
    """Entry point of `aegis-merge`."""
    cli.run(MergeConfig, _work, folder="output_dir")


def _work(config: MergeConfig) -> None:
    from aegis_eval.commands.work.merge import merge

    merge(config)


if __name__ == "__main__":
    main()
