"""The files of a checkpoint: weights, the VLM's architecture, and what is kept of pretraining and training.

The model card is in `card`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import TRAINING_STATE_DIR
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from aegis_policy.anchors.checks import read_anchor, refusal
from aegis_policy.checkpoint.checks import ANCHOR_FILE, CONFIG_FILE, REFERENCE_FILE, WEIGHTS_FILE, lost_file
from aegis_policy.isolation import Anchor, AnchorError
from aegis_policy.pretrained import EMBEDDED_VLM, embedded_anchor
from aegis_policy.protections import PROTECTIONS, Protection
from aegis_policy.support.errors import AegisError, one_line, some
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import read_json
from aegis_policy.support.tensor_files import read_header
from aegis_policy.vlm.parts import VLMParts

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.lerobot_vlas.configuration_vlas import ProtectedVLAConfig

STATE_FILE = "protection_state.safetensors"
_STEPS, _VQA_BEFORE = "steps", "vqa_before"
_ADAPTER, _BASE = ".lora_", ".base_layer."
"""How peft names an adapter's weights in a layer, and those that it stands beside."""
_NOT_A_POLICY = ["checkpoints/*", "training_state/*", "*.mp4"]
"""What a repository of a policy may hold beside it, by the gigabyte."""
_HUB_OPTIONS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


@dataclass(frozen=True)
class TrainingState:
    """What a training goes on from, besides weights and anchor.

    Attributes:
        steps: of training so far.
        vqa_before: the accuracy that the probe found of the pretrained model; None if it was not asked.
    """

    steps: int = 0
    vqa_before: float | None = None

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        tensors = {_STEPS: torch.tensor(self.steps)}
        if self.vqa_before is not None:
            tensors[_VQA_BEFORE] = torch.tensor(self.vqa_before)
        save_file(tensors, folder / STATE_FILE)

    @classmethod
    def load(cls, checkpoint: Path | None) -> Self:
        """What `save` wrote; the beginning for a fresh policy or a checkpoint without the file.

        Raises:
            AegisError: the file is not whole.
        """
        if checkpoint is None or not (checkpoint / STATE_FILE).is_file():
            return cls()
        try:
            tensors = load_file(checkpoint / STATE_FILE)
            steps, before = tensors.get(_STEPS), tensors.get(_VQA_BEFORE)
            return cls(0 if steps is None else int(steps), None if before is None else float(before))
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise AegisError(
                f"{checkpoint / STATE_FILE} is not readable ({error}): restore it from where the checkpoint was saved."
            ) from error


def find_checkpoint(name: str | Path, options: Mapping[str, Any], flag: str = "--policy.path") -> Path:
    """The folder of a checkpoint; `checks` tell whether it is whole.

    Args:
        name: the folder itself, or a hub id.
        options: those for the hub are used.
        flag: that named it.

    Raises:
        AegisError: there is none.
    """
    folder = Path(name)
    if not folder.is_dir():
        hub = {key: options[key] for key in _HUB_OPTIONS if key in options}
        try:
            folder = Path(snapshot_download(str(name), ignore_patterns=_NOT_A_POLICY, **hub))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise AegisError(
                f"{flag}={name} is neither a folder nor a model that the hub gives "
                f"({one_line(error)}): name the `pretrained_model` folder of a checkpoint."
            ) from error
    return folder


def read_config(checkpoint: Path) -> PreTrainedConfig:
    """The configuration that a checkpoint was saved with.

    Raises:
        AegisError: it is none.
    """
    try:
        return PreTrainedConfig.from_pretrained(checkpoint)
    except AegisError as error:
        raise AegisError(f"{checkpoint / CONFIG_FILE}: {error}") from error
    except Exception as error:  # whatever the parser does with values of other types
        raise AegisError(
            f"{checkpoint / CONFIG_FILE} is no configuration of this policy ({one_line(error)}): "
            "restore it from where the checkpoint was saved, or update lerobot_policy_aegis, if that was a later one."
        ) from error


def weight_shapes(checkpoint: Path, module: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's weights of one of the policy's modules, by their names in it.

    Raises:
        AegisError: the file is not whole.
    """
    path, prefix = checkpoint / WEIGHTS_FILE, f"{module}."
    try:
        header = read_header(path)
    except (OSError, ValueError) as error:
        raise AegisError(f"{path} cannot be read ({error}): take the folder as training saved it.") from error
    return {
        name.removeprefix(prefix): each["shape"] for name, each in header.items() if name.startswith(prefix)
    }


def require_shapes(module: nn.Module, checkpoint: Path, name: str) -> None:
    """See that a module of the policy, which takes no memory yet, is that of a checkpoint's weights.

    Raises:
        AegisError: it is not.
    """
    held = weight_shapes(checkpoint, name)
    for each, parameter in module.named_parameters():
        if each in held and held[each] != list(parameter.shape):
            raise AegisError(
                f"{checkpoint / WEIGHTS_FILE} does not fit its configuration: {name}.{each} has the shape {held[each]} "
                f"instead of {list(parameter.shape)}: take the folder as training saved it."
            )


def load_weights(model: nn.Module, file: str, device: str, strict: bool) -> None:
    """Load a safetensors file into a policy; into one whose adapters are new, the weights beside them.

    Args:
        model: whose parameters the file's names are.
        file: the weights.
        device: to read them to.
        strict: refuse a file with more or less than the model has.

    Raises:
        AegisError: the file is not whole, or does not fit.
    """
    mend = "take the folder as training saved it"
    try:
        held = {
            name: each["shape"] for name, each in read_header(Path(file)).items() if name != "__metadata__"
        }
        own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
        if others := [name for name, shape in own.items() if held.get(name, shape) != shape]:
            name = others[0]
            raise AegisError(
                f"{file} does not fit its configuration: it holds {some(others)} with other shapes, the first "
                f"{held[name]} instead of {own[name]}: {mend}."
            )
        if any(_ADAPTER in name for name in own) and not had_adapters(Path(file).parent):
            missing, unexpected = _load_beside_adapters(model, file, device, own)
        else:
            missing, unexpected = load_model(model, file, strict=False, device=device)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise AegisError(f"{file} cannot be loaded ({one_line(error)}): {mend}.") from error
    if strict and (missing or unexpected):
        raise AegisError(
            f"{file} does not fit its configuration: it lacks {some(missing)} and has {some(unexpected)} too "
            f"many: {mend}."
        )


def had_adapters(checkpoint: Path) -> bool:
    """Whether a checkpoint was trained under a protection that has adapters, even if its weights have lost them."""
    before = PROTECTIONS.get(read_json(checkpoint / CONFIG_FILE).get("protection"), Protection)
    return before.adapt is not Protection.adapt


def _load_beside_adapters(
    model: nn.Module, file: str, device: str, own: Iterable[str]
) -> tuple[set[str], set[str]]:
    """Load the weights that adapters stand beside, from a file without any, and say what it lacks and has too many.

    `own` are the names in the model.
    """

    def to_base(_module: nn.Module, weights: dict[str, Tensor], *_: Any) -> None:
        for name in bases:
            if (plain := name.replace(_BASE, ".")) in weights:
                weights[name] = weights.pop(plain)

    bases = [name for name in own if _BASE in name]
    hook = model.register_load_state_dict_pre_hook(to_base)
    try:
        missing, unexpected = load_model(model, file, strict=False, device=device)
    finally:
        hook.remove()
    return {name for name in missing if _ADAPTER not in name}, set(unexpected)


def find_anchor(
    config: "AegisConfig | ProtectedVLAConfig", protection: Protection, vlm: VLMParts, checkpoint: Path | None
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
            enforce([lost_file(own.parent, ANCHOR_FILE, config.protection)])
    elif vlm.name == EMBEDDED_VLM:
        path, named = embedded_anchor(), f"--policy.vlm={EMBEDDED_VLM}"
    else:
        raise AegisError(
            f"--policy.protection={config.protection} needs the anchor of {vlm.name}: make it "
            f"with aegis-anchor {vlm.flag}={vlm.name} --vqa=QUESTIONS --out=anchor.safetensors and name it with "
            "--policy.anchor_path=anchor.safetensors."
        )
    try:
        anchor = read_anchor(path, vlm, config.vlm_fingerprint, protection)
    except AnchorError as error:
        raise AegisError(str(refusal(named, error))) from error
    if path != own:
        config.anchor_info = {**anchor.metadata, "path": str(path)}
        config.anchor_path = None
    return protection.part_of(anchor)


def find_reference(
    protection: Protection, vlm: VLMParts, checkpoint: Path | None
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
    if not path.is_file():
        enforce([lost_file(checkpoint, REFERENCE_FILE, protection.config.protection)])
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise AegisError(
            f"{path} is not readable ({error}), and the protection compares with the pretrained weights: start from "
            "the pretrained VLM, or restore the file from where the checkpoint was saved."
        ) from error


def remove_left(folder: Path) -> None:
    """Remove what a training that was killed while it saved left in the checkpoint whose policy goes to `folder`.

    safetensors writes under a name of its own first: weights, and beside them the state of LeRobot's optimizer.
    """
    for place in (folder, folder.parent / TRAINING_STATE_DIR):
        for path in place.glob(".tmp??????"):
            path.unlink()


def save_beside(folder: Path, anchor: Anchor | None, reference: dict[str, Tensor] | None) -> None:
    """Write what `find_anchor` and `find_reference` will read from a checkpoint."""
    if anchor is not None:
        anchor.save(folder / ANCHOR_FILE)
    if reference is not None:
        save_file({name: x.cpu().contiguous() for name, x in reference.items()}, folder / REFERENCE_FILE)
