"""A protected policy as LeRobot's own, for whoever runs it without this package."""

import shutil
from collections.abc import Iterator
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
from aegis_policy.vlm.merging import has_adapters, merge_

if TYPE_CHECKING:
    from aegis_policy.lerobot_vlas.modeling_vlas import ProtectedVLA

_OURS = {field.name for field in fields(ProtectedVLAConfig)} - {
    field.name for field in fields(PreTrainedConfig)
}


def save_plain(policy: "ProtectedVLA", checkpoint: Path, folder: Path) -> None:
    """Write a policy as its plain type: adapters merged, processors as they are, nothing of a protection.

    What adapters do may be less than bfloat16 tells apart, so that a policy that had some becomes a float32 one.

    Args:
        policy: as `checkpoint` has it; what adapters it has are merged in it.
        checkpoint: its `pretrained_model` folder.
        folder: an empty one.
    """
    config = read_json(checkpoint / CONFIG_FILE)
    kept = {name: value for name, value in config.items() if name not in _OURS}
    kept |= {"type": plain_type(policy.name), "pretrained_path": None}
    if has_adapters(policy):
        kept |= {"dtype": "float32"} if "dtype" in kept else {}
        save_model(merge_(policy), str(folder / WEIGHTS_FILE))
    else:
        shutil.copy(checkpoint / WEIGHTS_FILE, folder)
    write_json(folder / CONFIG_FILE, kept)
    for name in (POLICY_PREPROCESSOR_DEFAULT_NAME, POLICY_POSTPROCESSOR_DEFAULT_NAME):
        for file in checkpoint.glob(f"{name}*"):
            shutil.copy(file, folder)
        for kept_beside in _artifacts(checkpoint / f"{name}.json"):
            shutil.copytree(checkpoint / kept_beside, folder / kept_beside, dirs_exist_ok=True)


def _artifacts(processor: Path) -> Iterator[str]:
    """Folders beside a processor that its steps read: tokenizers in LeRobot's main, none in 0.6.1."""
    for step in read_json(processor)["steps"] if processor.is_file() else ():
        yield from step.get("artifacts", {}).values()
