"""The work of `aegis-export`: the VLM out of a policy, into a folder."""

from pathlib import Path

from aegis_eval.checkpoints import load_policy
from aegis_eval.commands.export import ExportConfig
from aegis_policy.support.files import atomic_directory, require_new_directory


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
