"""What a policy knows of the pretrained model, and how it keeps it: as files beside its weights."""

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis_policy.isolation import Anchor, AnchorError
from aegis_policy.protections import Protection
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.loading import EMBEDDED_VLM, embedded_anchor

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig

ANCHOR_FILE = "anchor.safetensors"
REFERENCE_FILE = "pretrained_weights.safetensors"
STATE_FILE = "protection_state.safetensors"


def find_anchor(
    config: "AegisConfig", protection: Protection, vlm: VLMBackbone, checkpoint: Path | None
) -> Anchor | None:
    """The anchor of a policy: the flag's, the checkpoint's, or the embedded VLM's; None if none is needed.

    What the flag named belongs to the policy from here on, and `config.anchor_path` is cleared.

    Raises:
        AegisError: there is none, or it is not one of this VLM that serves this protection.
    """
    if not protection.needs_anchor:
        config.anchor_info = None
        return None
    own = checkpoint / ANCHOR_FILE if checkpoint else None
    if config.anchor_path is not None:
        path, named = config.anchor_path, f"--policy.anchor_path={config.anchor_path}"
    elif own is not None and (own.is_file() or config.anchor_info):
        path, named = own, f"The checkpoint {checkpoint}"
        if not own.is_file():
            raise AegisError(
                f"{named} holds no {ANCHOR_FILE}, and protection={config.protection} must not run without: restore the "
                "file from where it was saved."
            )
    elif config.vlm == EMBEDDED_VLM:
        path, named = embedded_anchor(), f"--policy.vlm={EMBEDDED_VLM}"
    else:
        raise AegisError(
            f"--policy.protection={config.protection} needs the anchor of --policy.vlm={config.vlm}: make it "
            f"with aegis-anchor --vlm={config.vlm} --vqa=QUESTIONS --out=anchor.safetensors and name it with "
            "--policy.anchor_path=anchor.safetensors."
        )
    try:
        anchor = _anchor_of(vlm, path, config)
        protection.check_anchor(anchor)
    except AnchorError as error:
        raise AegisError(f"{named} cannot be used: {error}") from error
    if path != own:
        config.anchor_info = {**anchor.metadata, "path": str(path)}
        config.anchor_path = None
    return protection.part_of(anchor)


def _anchor_of(vlm: VLMBackbone, path: Path, config: "AegisConfig") -> Anchor:
    """The anchor in a file.

    Raises:
        AnchorError: it is not one of this VLM; the mend names the command that makes one.
    """
    try:
        anchor = Anchor.load(path)
        anchor.check(vlm.num_layers, vlm.hidden_size, config.vlm_fingerprint)
    except AnchorError as error:
        raise AnchorError(error.fault, f"{error.mend}, with aegis-anchor --vlm={config.vlm}") from error
    return anchor


def find_reference(
    protection: Protection, vlm: VLMBackbone, checkpoint: Path | None
) -> dict[str, Tensor] | None:
    """The pretrained weights of what learns, if the protection needs them: a fresh policy's own, or a checkpoint's.

    Raises:
        AegisError: the checkpoint has lost them.
    """
    if not protection.needs_reference:
        return None
    if checkpoint is None:
        return {name: p.detach().clone() for name, p in vlm.model.named_parameters() if p.requires_grad}
    path = checkpoint / REFERENCE_FILE
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AegisError(
            f"{path} is not readable ({error}), and the protection compares with the pretrained weights: start from "
            "the pretrained VLM, or restore the file from where the checkpoint was saved."
        ) from error


def save_beside(folder: Path, anchor: Anchor | None, reference: dict[str, Tensor] | None) -> None:
    """Write what `find_anchor` and `find_reference` will read from a checkpoint."""
    if anchor is not None:
        anchor.save(folder / ANCHOR_FILE)
    if reference is not None:
        save_file({name: x.cpu().contiguous() for name, x in reference.items()}, folder / REFERENCE_FILE)


def save_training_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Write what a training under a protection goes on from."""
    save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, folder / STATE_FILE)


def load_training_state(checkpoint: Path | None) -> dict[str, Tensor]:
    """What `save_training_state` wrote; empty for a fresh policy or a checkpoint that never trained.

    Raises:
        AegisError: the file is not whole.
    """
    if checkpoint is None or not (checkpoint / STATE_FILE).is_file():
        return {}
    try:
        return load_file(checkpoint / STATE_FILE)
    except (OSError, SafetensorError) as error:
        raise AegisError(
            f"{checkpoint / STATE_FILE} is not readable ({error}): restore it from where the checkpoint was saved."
        ) from error
