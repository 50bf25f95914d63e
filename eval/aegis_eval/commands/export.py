"""`aegis-export`: the VLM of a policy as a plain transformers directory, or a protected policy as one of LeRobot's."""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class ExportConfig:
    """Flags of `aegis-export`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        output_dir: a new folder, which `AutoModelForImageTextToText.from_pretrained` and lmms-eval load; or, of a plain
            policy, `lerobot-eval`.
        plain: write the whole policy, as LeRobot's own type: of an `aegis_pi05` a `pi05`, which runs without this
            package.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    output_dir: Path = Path("outputs/exported-vlm")
    plain: bool = False


def main() -> None:
    """Entry point of `aegis-export`."""
    cli.run(ExportConfig, _work, folder="output_dir")


def _work(config: ExportConfig) -> None:
    from aegis_eval.commands.work.export import export

    export(config)


if __name__ == "__main__":
    main()
