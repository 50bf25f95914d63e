"""The `--policy.path` flag of the `aegis-*` commands: a trained policy, its processors, the VLM it was made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.modeling_aegis import AegisPolicy
    from aegis_policy.vlm.backbone import VLMBackbone


@dataclass
class PolicySource:
    """A policy checkpoint: a `pretrained_model` folder, the step folder around it, or a hub id."""

    path: str | None = None


def load_policy(source: PolicySource) -> "tuple[AegisPolicy, str]":
    """The policy of a checkpoint, and its folder or hub id.

    Raises:
        AegisError: no path, or a local folder that is no checkpoint.
    """
    if source.path is None:
        raise AegisError("--policy.path is missing: name the `pretrained_model` folder of a checkpoint.")
    folder = Path(source.path)
    if (folder / "pretrained_model" / "config.json").is_file():
        folder = folder / "pretrained_model"
    if folder.exists() and not (folder / "config.json").is_file():
        raise AegisError(
            f"--policy.path={source.path} holds no config.json: give the `pretrained_model` folder of a checkpoint."
        )
    if not folder.exists() and source.path.count("/") != 1:
        raise AegisError(f"--policy.path={source.path} does not exist: give a checkpoint folder or a hub id.")
    from aegis_policy.modeling_aegis import AegisPolicy  # brings all of LeRobot with it

    found = str(folder) if folder.exists() else source.path
    return AegisPolicy.from_pretrained(found), found


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


def load_original_vlm(policy_config: Any, flag_value: str | None) -> "tuple[VLMBackbone | None, str]":
    """The VLM that a policy was made from, before any robot; else None and a sentence why not.

    Args:
        policy_config: the policy's, or None if there is no policy.
        flag_value: of `--pretrained`, which names a copy and is believed.

    Raises:
        AegisError: `--pretrained` names no model.
    """
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.fingerprint import same_weights

    name = flag_value or (policy_config.vlm if policy_config is not None else None)
    if name is None:
        return None, ""
    try:
        vlm = VLMBackbone.from_pretrained(name, flag="--pretrained")
    except AegisError:
        if flag_value is not None:
            raise
        return None, (
            f"The VLM this policy was made from ({name}) cannot be read, so nothing is compared with it: "
            "name a copy with --pretrained."
        )
    expected = policy_config.vlm_fingerprint if policy_config is not None else None
    if flag_value is None and not same_weights(expected, vlm.fingerprint()):
        return None, (
            f"{name} is no longer the VLM this policy was made from (its fingerprint differs), so nothing is "
            "compared with it: name the original with --pretrained."
        )
    return vlm, ""
