"""The work of `aegis-merge`: a copy of a checkpoint, with other weights in the VLM's decoder layers."""

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis_eval.checkpoints import is_vla, load_original_vlm, load_policy_vlm
from aegis_eval.commands.merge import MergeConfig
from aegis_policy.checkpoint.checks import CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.checkpoint.files import find_checkpoint
from aegis_policy.support.errors import AegisError, some
from aegis_policy.support.files import atomic_directory, require_new_directory, writing
from aegis_policy.support.json_files import read_json, write_json
from aegis_policy.vlm.backbone import VLMBackbone

MERGED_FILE = "merged.json"
_BASE, _SECOND = ".base_layer.", ".lora_B."
"""In the names of a weight beside which peft puts an adapter, and of the adapter's second matrix."""


def merge(config: MergeConfig) -> Path:
    """Write the checkpoint, with `merged.json` beside its weights; the folder is whole or absent.

    Raises:
        AegisError: no checkpoint, `--alpha` out of range, the folder holds files, or the pretrained weights cannot be
            had.
    """
    if not 0 <= config.alpha <= 1:
        raise AegisError(f"--alpha={config.alpha} must lie between 0, all pretrained, and 1, as trained.")
    folder = require_new_directory(config.output_dir, "--output_dir")
    _, origin, found = load_policy_vlm(config.policy)
    pretrained, reason = load_original_vlm(origin, config.pretrained)
    if pretrained is None:
        raise AegisError(reason or "Nothing says what this policy was made from: name it with --pretrained.")
    checkpoint = find_checkpoint(found, {})
    with atomic_directory(folder) as beside:
        _copy(checkpoint, beside, but=WEIGHTS_FILE)
        weights = load_file(checkpoint / WEIGHTS_FILE)
        with safe_open(checkpoint / WEIGHTS_FILE, "pt") as file:
            about = file.metadata()
        merged = interpolated(weights, _language(pretrained, checkpoint), config.alpha)
        save_file(merged, beside / WEIGHTS_FILE, about)
        write_json(
            beside / MERGED_FILE, {"policy": found, "alpha": config.alpha, "pretrained": pretrained.name}
        )
    print(f"wrote {folder}: {config.alpha:g} of the way from {pretrained.name} to {found}")
    return folder


def interpolated(
    weights: dict[str, Tensor], pretrained: dict[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """All `weights`, those that `pretrained` has too as `pretrained + alpha (weights - pretrained)`.

    Of an adapter B A beside a weight, B becomes alpha B.

    Raises:
        AegisError: a pretrained weight is not there, or has another shape.
    """
    unmet = set(pretrained)
    result = dict(weights)
    for name, weight in weights.items():
        plain = name.replace(_BASE, ".")
        if (before := pretrained.get(plain)) is not None:
            if before.shape != weight.shape:
                raise AegisError(
                    f"{plain} has the shape {list(weight.shape)} in the policy and {list(before.shape)} in the "
                    "pretrained model: name the one that the policy was made from with --pretrained."
                )
            unmet.discard(plain)
            result[name] = before.float().lerp(weight.float(), alpha).to(weight.dtype)
        elif _SECOND in name:
            result[name] = weight * alpha
    if unmet:
        raise AegisError(
            f"The policy has no {some(sorted(unmet))}, which the pretrained model has: name the one that it was made "
            "from with --pretrained."
        )
    return result


def _copy(folder: Path, to: Path, but: str) -> None:
    """Copy what is in a folder, but for one name."""
    for path in sorted(folder.rglob("*")):
        target = to / path.relative_to(folder)
        if path.is_dir():
            target.mkdir()
        elif path.name != but:
            # shutil's own functions tell of a full disk as if it were the source's.
            with writing(target), path.open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def _language(pretrained: VLMBackbone, checkpoint: Path) -> dict[str, Tensor]:
    """The weights of the decoder layers, by their names in a checkpoint of the policy."""
    from aegis_policy.lerobot_vlas.inner import path_of

    inside = path_of(read_json(checkpoint / CONFIG_FILE)["type"]) if is_vla(str(checkpoint)) else "vlm.model"
    layers = f"{pretrained.family.decoder_layers}."
    return {
        f"{inside}.{name}": p.detach()
        for name, p in pretrained.model.named_parameters()
        if name.startswith(layers)
    }
