"""Penalties beside the task's loss: the usual alternatives to projecting.

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aegis_policy.isolation._gaussian import GaussianAnchor, w2_cotangents, w2_squared
from aegis_policy.isolation._moments import EPS, global_moments
from aegis_policy.isolation._ranks import rank_count


def weight_penalty(
    parameters: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    importance: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """How far weights W are from their pretrained values W0, differentiable: 1/2 sum_i F_i (W_i - W0_i)^2.

    With importances F of one it is L2-SP (arXiv 1802.01483), with the diagonal of the Fisher information elastic
    weight consolidation (arXiv 1612.00796).

    Args:
        parameters: by name.
        reference: the pretrained values, at least of those names.
        importance: F, at least of those names; one by default.
    """
    terms = [
        # Computed again in the backward pass: kept for it, the differences would be one more copy of the model.
        checkpoint(
            _away_squared,
            p,
            reference[name],
            None if importance is None else importance[name],
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for name, p in parameters.items()
    ]
    return 0.5 * torch.stack(terms).sum()


def _away_squared(p: Tensor, reference: Tensor, importance: Tensor | None) -> Tensor:
    squared = (p - reference.to(p)).square()
    return (squared if importance is None else importance.to(p) * squared).sum()


def distance_penalty(
    hidden: Sequence[Tensor], mask_BT: Tensor, anchor: GaussianAnchor, eps: float = EPS
) -> Tensor:
    """The squared W2 distance of a batch's hidden states to a Gaussian anchor, summed over layers, differentiable.

    The moments are those of the global batch. Its gradient is scaled so that averaging parameter gradients over ranks,
    as DDP does, gives that of the global distance.

    Args:
        hidden: L tensors (B, T, D), each layer's output.
        mask_BT: bool, True for a valid token.
        anchor: of the same L layers.
        eps: inside the square root of the batch's standard deviation.
    """
    moments = global_moments(hidden, mask_BT, eps)
    mean0_LD, std0_LD = anchor.mean_LD.to(moments.mean_LD), anchor.std_LD.to(moments.std_LD)
    value = w2_squared(moments.mean_LD, moments.std_LD, mean0_LD, std0_LD)
    cotangents = w2_cotangents(hidden, mask_BT, moments, mean0_LD, std0_LD)
    # A product whose gradient is the closed form; its own value is taken off again.
    product = (
        torch.stack([(x * c).sum() for x, c in zip(hidden, cotangents, strict=True)]).sum() * rank_count()
    )
    return value + (product - product.detach())
