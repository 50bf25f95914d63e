"""The work of `aegis-export`: the VLM out of a policy, or one of LeRobot's policies without the protection."""

from pathlib import Path

from aegis_eval.checkpoints import find_policy, is_vla, load_policy_vlm, load_vla
from aegis_eval.commands.export import ExportConfig
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_directory, require_new_directory


def export(config: ExportConfig) -> Path:
    """Write weights (adapters merged), configuration and processors; the folder is whole or absent.

    Raises:
        AegisError: no checkpoint, the folder holds files, or `--plain` with a policy that LeRobot does not have.
    """
    folder = require_new_directory(config.output_dir, "--output_dir")
    if config.plain:
        _export_plain(find_policy(config.policy), folder)
    else:
        vlm, _, _ = load_policy_vlm(config.policy)
        with atomic_directory(folder) as beside:
            vlm.save_pretrained(beside)
    print(f"wrote {folder}")
    return folder


def _export_plain(policy: str, folder: Path) -> None:
    from aegis_policy.lerobot_vlas.inner import PROTECTED
    from aegis_policy.lerobot_vlas.modeling_vlas import ProtectedVLA
    from aegis_policy.lerobot_vlas.plain import save_plain

    vla, checkpoint = load_vla(policy) if is_vla(policy) else (None, Path(policy))
    if not isinstance(vla, ProtectedVLA):
        raise AegisError(
            f"--policy.path={policy} is none of {', '.join(PROTECTED)}, which --plain is for: "
            "leave it out, and the VLM is written."
        )
    with atomic_directory(folder) as beside:
        save_plain(vla, checkpoint, beside)
