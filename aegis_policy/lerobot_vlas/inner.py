"""The VLM inside one of LeRobot's policies: its parts where it is, and a whole one that answers."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lerobot.policies import PreTrainedPolicy

from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.loading import load_processor
from aegis_policy.vlm.merging import merge_
from aegis_policy.vlm.parts import VLMParts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PALIGEMMA = "google/paligemma-3b-pt-224"
"""Whose tokenizer LeRobot gives `pi0` and `pi05`, whatever they are told."""


@dataclass(frozen=True)
class _Inside:
    """Where a policy keeps its VLM, and how to get what transformers knows by that name.

    Attributes:
        path: of a transformers image-text-to-text model, from the policy.
        processor: of its own, from the policy.
    """

    path: str
    processor: Callable[[Any], Any]


def _load(name: str, policy: Any) -> Any:
    return load_processor(name, f"{name} (the processor of {policy.name})")


_PI = "model.paligemma_with_expert.paligemma"
_KNOWN = {
    "smolvla": _Inside("model.vlm_with_expert.vlm", lambda policy: policy.model.vlm_with_expert.processor),
    "pi0": _Inside(_PI, lambda policy: _load(_PALIGEMMA, policy)),
    "pi05": _Inside(_PI, lambda policy: _load(_PALIGEMMA, policy)),
    "pi0_fast": _Inside(_PI, lambda policy: _load(policy.config.text_tokenizer_name, policy)),
    "eo1": _Inside("model.vlm_backbone", lambda policy: _load(policy.config.vlm_base, policy)),
}
"""Types of LeRobot's policies that have a transformers VLM inside."""
_PREFIX = "aegis_"
"""Before the name of such a type, with a protection."""
PROTECTED = tuple(f"{_PREFIX}{name}" for name in _KNOWN)
"""Types of this package that are one of those with a protection."""


def plain_type(name: str) -> str | None:
    """The name of LeRobot's own policy, of it or of the protected one; None of others."""
    plain = name.removeprefix(_PREFIX)
    return plain if plain in _KNOWN else None


def path_of(kind: str) -> str:
    """Where a policy of a type that `plain_type` knows keeps its VLM, a module of it, protected or not."""
    return _KNOWN[kind.removeprefix(_PREFIX)].path


def inner_model(policy: PreTrainedPolicy) -> "PreTrainedModel":
    """The VLM in a policy, which may lack layers at its end.

    Raises:
        AegisError: something wraps the policy, so that it is not where it should be.
    """
    path = _inside(policy).path
    try:
        return policy.get_submodule(path)
    except AttributeError as error:
        raise AegisError(
            f"This {policy.name} has no {path}: protect the policy itself, before peft or anything else wraps it."
        ) from error


def parts_of(policy: PreTrainedPolicy, name: str) -> VLMParts:
    """The parts of the VLM in a policy, where they are; `name` is how errors call the policy."""
    return VLMParts(inner_model(policy), name, flag="--policy.path")


def backbone_of(policy: PreTrainedPolicy, name: str) -> VLMBackbone:
    """The VLM in a policy as one that reads and answers, with weights of its own in float32.

    Adapters in the policy are merged on the way: it is not for one that goes on.

    Raises:
        AegisError: its processor is not there.
    """
    model = inner_model(policy)
    config = copy.deepcopy(model.config)
    config.get_text_config().num_hidden_layers = parts_of(policy, name).num_layers
    if not torch.equal(model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = (
            False  # pi0 trains one of them
        )
    whole = _transformers_class(model)(config).float()
    whole.load_state_dict(merge_(model).state_dict())
    vlm = VLMBackbone(whole.eval(), _inside(policy).processor(policy), name, flag="--policy.path")
    vlm.whole = layers_left_out(policy) == 0
    return vlm


def layers_left_out(policy: PreTrainedPolicy) -> int:
    """How many of the VLM's last decoder layers the policy does not have."""
    whole = inner_model(policy).config.get_text_config().num_hidden_layers
    return whole - parts_of(policy, policy.name).num_layers


def _transformers_class(model: "PreTrainedModel") -> Any:
    """What transformers builds from the configuration: LeRobot's classes may derive from it."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText._model_mapping[type(model.config)]


def _inside(policy: PreTrainedPolicy) -> _Inside:
    plain = plain_type(policy.name)
    if plain is None:
        raise AegisError(
            f"A policy of type {policy.name} is not known here: choose one of {', '.join(_KNOWN)}, or give the "
            "layers of your own to aegis_policy.isolation."
        )
    return _KNOWN[plain]
