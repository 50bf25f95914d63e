"""The `--policy.path` flag of the `aegis-*` commands: a trained policy, its processors, the VLM it was made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis_policy.checkpoint.checks import CONFIG_FILE, WEIGHTS_FILE
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json

if TYPE_CHECKING:
    from aegis_policy.modeling_aegis import AegisPolicy
    from aegis_policy.vlm.backbone import VLMBackbone


@dataclass
class PolicySource:
    """A policy checkpoint: a `pretrained_model` folder, the step folder around it, or a hub id."""

    path: str | None = None


@dataclass(frozen=True)
class Origin:
    """The VLM that a policy was made from: how it was named, and what its weights were, as far as known."""

    vlm: str
    vlm_fingerprint: str | None


def load_policy(source: PolicySource) -> "tuple[AegisPolicy, str]":
    """The policy of type `aegis` in a checkpoint, and its folder or hub id.

    Raises:
        AegisError: no path, a local folder that is no checkpoint, or one of another type.
    """
    found = find_policy(source)
    from aegis_policy.modeling_aegis import AegisPolicy  # brings all of LeRobot with it

    return AegisPolicy.from_pretrained(found), found


def load_policy_vlm(
    source: PolicySource, *, to_answer: bool = False
) -> "tuple[VLMBackbone, Origin | None, str]":
    """The VLM in a policy of this package or in one of LeRobot's own, what it was made from, and the folder or hub id.

    Args:
        source: the policy.
        to_answer: questions are to be asked.

    Raises:
        AegisError: as `load_policy`; or the policy has left out layers, without which its VLM does not answer.
    """
    found = find_policy(source)
    if not is_vla(found):
        policy, _ = load_policy(source)
        return policy.vlm, Origin(policy.config.vlm, policy.config.vlm_fingerprint), found
    from aegis_policy.lerobot_vlas.inner import backbone_of

    vla, _ = load_vla(found)
    vlm = backbone_of(vla, found)
    if to_answer and not vlm.whole:
        raise AegisError(
            f"--policy.path={source.path} has left out the last decoder layers of its VLM, and does not answer without "
            "them: aegis-drift tells how far the others moved."
        )
    base, fingerprint = getattr(vla.config, "base", None), getattr(vla.config, "vlm_fingerprint", None)
    return vlm, None if base is None else Origin(base, fingerprint), found


def find_policy(source: PolicySource) -> str:
    """The folder, or hub id, of a policy that is there.

    Raises:
        AegisError: none is.
    """
    if source.path is None:
        raise AegisError("--policy.path is missing: name the `pretrained_model` folder of a checkpoint.")
    folder = Path(source.path)
    if (folder / "pretrained_model" / CONFIG_FILE).is_file():
        folder = folder / "pretrained_model"
    if folder.exists() and not (folder / CONFIG_FILE).is_file():
        raise AegisError(
            f"--policy.path={source.path} holds no config.json: give the `pretrained_model` folder of a checkpoint."
        )
    if not folder.exists() and source.path.count("/") != 1:
        raise AegisError(f"--policy.path={source.path} does not exist: give a checkpoint folder or a hub id.")
    return str(folder) if folder.exists() else source.path


def is_vla(name: str) -> bool:
    """Whether a folder or hub id is a policy of LeRobot's own with a VLM that is known inside, protected or not."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    from aegis_policy.lerobot_vlas.inner import plain_type

    file = Path(name) / CONFIG_FILE
    if not Path(name).exists() and name.count("/") == 1:
        try:
            file = Path(hf_hub_download(name, CONFIG_FILE))
        except (OSError, ValueError, HfHubHTTPError):
            return False  # whoever loads it says what is wrong
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return False
    kind = found.get("type") if isinstance(found, dict) else None
    return isinstance(kind, str) and plain_type(kind) is not None


def load_vla(name: str) -> tuple[Any, Path]:
    """One of LeRobot's own policies, protected or not, on the CPU in float32, and its folder.

    Raises:
        AegisError: its weights are not all there.
    """
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class

    import aegis_policy.lerobot_vlas.configuration_vlas  # noqa: F401  # their types
    from aegis_policy.checkpoint.files import find_checkpoint
    from aegis_policy.lerobot_vlas.loading import require_loaded

    folder = find_checkpoint(name, {})
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    config.pretrained_path = folder  # without it, `eo1` would ask for the VLM that it was made from
    if hasattr(config, "dtype"):
        config.dtype = "float32"  # in which adapters are merged
    policy = get_policy_class(config.type).from_pretrained(folder, config=config)
    require_loaded(policy, folder / WEIGHTS_FILE)
    return policy, folder


def load_processors(policy: "AegisPolicy", folder: str, device: str) -> tuple[Any, Any]:
    """What LeRobot puts before and behind the policy of a checkpoint.

    Raises:
        AegisError: they are not there, as where a training ended while it saved.
    """
    from lerobot.policies.factory import make_pre_post_processors

    try:
        return make_pre_post_processors(
            policy.config,
            pretrained_path=folder,
            preprocessor_overrides={"device_processor": {"device": device}},
        )
    except AegisError:
        raise
    except Exception as error:  # whatever LeRobot's steps do with values of other types
        raise AegisError(
            f"{folder} holds no policy_preprocessor.json and policy_postprocessor.json with their files that can be "
            f"read ({type(error).__name__}): take the folder as training saved it, or an earlier checkpoint."
        ) from error


def load_original_vlm(origin: Origin | None, flag_value: str | None) -> "tuple[VLMBackbone | None, str]":
    """The VLM that a policy was made from, before any robot; else None and a sentence why not.

    Args:
        origin: the policy's, or None if there is no policy or it does not tell.
        flag_value: of `--pretrained`, which names a copy and is believed: a VLM, or one of LeRobot's policies.

    Raises:
        AegisError: `--pretrained` names no model.
    """
    from aegis_policy.vlm.fingerprint import same_weights

    name = flag_value or (origin.vlm if origin is not None else None)
    if name is None:
        return None, ""
    try:
        vlm = _load_vlm(name)
    except AegisError:
        if flag_value is not None:
            raise
        return None, (
            f"The VLM this policy was made from ({name}) cannot be read, so nothing is compared with it: "
            "name a copy with --pretrained."
        )
    expected = origin.vlm_fingerprint if origin is not None else None
    if flag_value is None and not same_weights(expected, vlm.fingerprint()):
        return None, (
            f"{name} is no longer the VLM this policy was made from (its fingerprint differs), so nothing is "
            "compared with it: name the original with --pretrained."
        )
    return vlm, ""


def _load_vlm(name: str) -> "VLMBackbone":
    from aegis_policy.vlm.backbone import VLMBackbone

    if not is_vla(name):
        return VLMBackbone.from_pretrained(name, flag="--pretrained")
    return load_policy_vlm(PolicySource(name))[0]
