"""AEGIS for the policies that LeRobot ships: `smolvla`, `pi0`, `pi05`, as they are, in a training loop of one's own.

Their backbones are run layer by layer from the outside, so there is no hidden state to hook for the Gaussian anchor.
The subspace anchor, which blocks a part of linear layers' weights, needs none:

    parameters = protect(policy, Anchor.load("anchor.safetensors"))
    optimizer = AegisAdamWConfig(lr=1e-4).build(parameters)

`vlm_linear_layers(policy)` are the layers to gather an anchor of with `FactorAccumulator` where `aegis-anchor` does not
know the family of the policy's VLM.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from lerobot.policies import PreTrainedPolicy
from torch import nn

from aegis_policy.isolation import DEFAULT_SHARE, Anchor
from aegis_policy.optimizer_aegis import PolicyParameters
from aegis_policy.protections.subspace import block_layers
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce
from aegis_policy.support.sharding import refuse_sharding

_BACKBONES = {
    "smolvla": "model.vlm_with_expert.vlm",
    "pi0": "model.paligemma_with_expert.paligemma",
    "pi05": "model.paligemma_with_expert.paligemma",
}
"""Policy -> where it keeps a transformers image-text-to-text model."""


def protect(
    policy: PreTrainedPolicy,
    anchor: Anchor,
    share: float = DEFAULT_SHARE,
) -> PolicyParameters:
    """Let a policy's backbone learn only what its anchor leaves free.

    Nothing of the backbone but weights of linear layers learns from now on, as far as the policy trains them at all: no
    anchor guards norms and embeddings. Its forward in training refuses to run until an optimizer that projects has
    been built from what is returned.

    Args:
        policy: one of LeRobot's own.
        anchor: of its VLM; names and shapes are compared with the VLM's own modules, weights are not.
        share: of every linear layer's input directions, the leading ones, that are protected.

    Returns:
        What to give to `AegisAdamWConfig.build`; the policy's `get_optim_params` returns it too.

    Raises:
        AegisError: a policy of another kind or a sharded one, a backbone that does not train, or an anchor that does
            not fit.
    """
    refuse_sharding(policy)
    layers = {name: layer for name, layer in vlm_linear_layers(policy).items() if layer.weight.requires_grad}
    if not layers:
        raise AegisError(
            f"No linear layer of the backbone of {policy.name} trains (see its train_expert_only), so there is "
            "nothing to protect."
        )
    projector, coverage = block_layers(layers, anchor, share, "subspace")
    enforce(coverage.findings())
    guarded = {id(layer.weight) for layer in layers.values()}
    _require_no_other_use(policy, layers, guarded)
    for parameter in _backbone(policy).parameters():
        parameter.requires_grad_(id(parameter) in guarded)
    parameters = PolicyParameters(
        [{"params": [p for p in policy.parameters() if p.requires_grad]}], [projector]
    )
    policy.get_optim_params = lambda: parameters
    policy.forward = _requiring_projection(policy, parameters)
    return parameters


def vlm_linear_layers(policy: PreTrainedPolicy) -> dict[str, nn.Linear]:
    """The linear layers of a policy's VLM by their names in it, without the language-model head.

    Raises:
        AegisError: a policy of another kind.
    """
    vlm = _backbone(policy)
    head = vlm.get_output_embeddings()
    return {
        name: module
        for name, module in vlm.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def _backbone(policy: PreTrainedPolicy) -> Any:
    if policy.name not in _BACKBONES:
        raise AegisError(
            f"A policy of type {policy.name} is not known here: choose one of {', '.join(_BACKBONES)}, or give the "
            "layers of your own to aegis_policy.isolation."
        )
    try:
        return policy.get_submodule(_BACKBONES[policy.name])
    except AttributeError as error:
        raise AegisError(
            f"This {policy.name} has no {_BACKBONES[policy.name]}: protect the policy itself, before peft or anything "
            "else wraps it."
        ) from error


def _require_no_other_use(policy: PreTrainedPolicy, layers: dict[str, nn.Linear], guarded: set[int]) -> None:
    """See that no protected weight is an embedding or a head too, about which no anchor knows."""
    for name, parameter in _backbone(policy).named_parameters(remove_duplicate=False):
        if id(parameter) in guarded and name.removesuffix(".weight") not in layers:
            raise AegisError(
                f"The backbone's {name} is also the weight of a linear layer that learns, and the anchor guards it in "
                "that layer alone: untie them, or let that layer's weight require no gradient."
            )


def _requiring_projection(policy: PreTrainedPolicy, parameters: PolicyParameters) -> Callable[..., Any]:
    """The policy's forward, which trainers call as a method, so that a hook would not see it."""
    forward = policy.forward

    @wraps(forward)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if policy.training:
            refuse_sharding(policy)
        if policy.training and not parameters.projects:
            raise AegisError(
                "This policy is protected, and no optimizer that projects was built from its parameters: make it "
                "with AegisAdamWConfig(...).build(parameters)."
            )
        return forward(*args, **kwargs)

    return guarded
