"""A protected policy as LeRobot's own, for whoever runs it without this package."""

import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME
from safetensors.torch import save_model

from aegis_policy.checkpoint.checks import CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.lerobot_vlas.configuration_vlas import ProtectedVLAConfig
from aegis_policy.lerobot_vlas.inner import plain_type
from aegis_policy.support.json_files import read_json, write_json
from aegis_policy.vlm.merging import merged

if TYPE_CHECKING:
    from aegis_policy.lerobot_vlas.modeling_vlas import ProtectedVLA

_OURS = {field.name for field in fields(ProtectedVLAConfig)} - {
    *(field.name for field in fields(PreTrainedConfig)),
    "train_expert_only",
}


def save_plain(policy: "ProtectedVLA", checkpoint: Path, folder: Path) -> None:
    """Write a policy as its plain type: adapters merged, processors as they are, nothing of a protection.

    Args:
        policy: as `checkpoint` has it.
        checkpoint: its `pretrained_model` folder.
        folder: an empty one.
    """
    config = read_json(checkpoint / CONFIG_FILE)
    kept = {name: value for name, value in config.items() if name not in _OURS}
    write_json(folder / CONFIG_FILE, {**kept, "type": plain_type(policy.name), "pretrained_path": None})
    save_model(merged(policy), str(folder / WEIGHTS_FILE))
    for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
        for file in checkpoint.glob(f"{name}*"):
            shutil.copy(file, folder)
