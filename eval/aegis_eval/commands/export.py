"""`aegis-export`: the fine-tuned VLM of a policy as a plain transformers directory, for any tool that reads one."""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource, load_policy
from aegis_policy.support import cli
from aegis_policy.support.files import atomic_directory, require_new_directory


@dataclass
class ExportConfig:
    """Flags of `aegis-export`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        output_dir: a new folder, which `AutoModelForImageTextToText.from_pretrained` and lmms-eval load.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    output_dir: Path = Path("outputs/exported-vlm")


def main() -> None:
    """Entry point of `aegis-export`."""
    cli.run(ExportConfig, export, folder="output_dir")


def export(config: ExportConfig) -> Path:
    """Write weights (adapters merged), configuration, tokenizer and processor; the folder is whole or absent.

    Raises:
        AegisError: no checkpoint, or the folder holds files.
    """
    folder = require_new_directory(config.output_dir, "--output_dir")
    policy, _ = load_policy(config.policy)
    with atomic_directory(folder) as beside:
        policy.vlm.save_pretrained(beside)
    print(f"wrote {folder}")
    return folder


if __name__ == "__main__":
    main()
