"""The components of linear layers' weights that carry most of the answers' Fisher information: the Kronecker anchor.

Take the eigenpairs (a_k, u_k) of a layer's input covariance and (g_j, v_j) of that of its output gradients
(`_factors`). A change D of the weights splits into components v_j^T D u_k, and moves the answers by a Fisher weight of
about g_j a_k each (K-FAC: Martens and Grosse, arXiv 1503.05671).

Shape suffixes: D inputs, E outputs of a linear layer, K input and J output eigenpairs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from aegis_policy.isolation._blocked_components import BlockedComponents, orthonormal
from aegis_policy.isolation._factors import LinearFactors
from aegis_policy.isolation._sketch import Spectrum


def select_components(factors: Mapping[str, LinearFactors], energy: float) -> dict[str, BlockedComponents]:
    """The components that carry the share `energy` of all layers' Fisher weight, heaviest first.

    Component (j, k) of a layer weighs g_j a_k. Blocked are those at least as heavy as the weight at which they sum up
    to `energy` of the total (the sum over layers of the product of the traces).

    Args:
        factors: by layer, with output factors.
        energy: in (0, 1].

    Returns:
        Blocks by layer; a layer without such a component has none.

    Raises:
        ValueError: the eigenpairs kept hold less than `energy`, or output factors are missing.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy} must lie between 0 and 1.")
    sides = {name: (layer.inputs, _outputs(name, layer)) for name, layer in factors.items()}
    weights = {
        name: torch.outer(outputs.values_K, inputs.values_K) for name, (inputs, outputs) in sides.items()
    }
    total = sum(float(inputs.total) * float(outputs.total) for inputs, outputs in sides.values())
    threshold = _threshold(torch.cat([weight_JK.flatten() for weight_JK in weights.values()]), energy, total)
    blocks = {}
    for name, weight_JK in weights.items():
        mask_JK = weight_JK >= threshold
        kept_J, kept_K = mask_JK.any(1), mask_JK.any(0)
        if kept_J.any():  # the heaviest eigenpairs of each side, which stand first
            inputs, outputs = (
                each.leading(int(kept.sum()))
                for each, kept in zip(sides[name], (kept_K, kept_J), strict=True)
            )
            blocks[name] = BlockedComponents(
                orthonormal(inputs), orthonormal(outputs), mask_JK[kept_J][:, kept_K]
            )
    return blocks


def _outputs(name: str, layer: LinearFactors) -> Spectrum:
    if layer.outputs is None:
        raise ValueError(f"There is no output factor of {name}: gather it with outputs=True.")
    return layer.outputs


def _threshold(weights_N: Tensor, energy: float, total: float) -> Tensor:
    """The weight of the lightest component that is needed to hold the share `energy` of `total`."""
    sorted_N = weights_N.sort(descending=True).values
    held_N = sorted_N.double().cumsum(0)
    wanted = energy * total
    if held_N[-1] < wanted * (1 - 1e-4):
        raise ValueError(
            f"The eigenpairs kept hold {held_N[-1] / total:.1%} of the energy, less than the {energy:.1%} to protect: "
            "keep more of them, or protect less."
        )
    index = int((held_N < wanted).sum().clamp(max=len(held_N) - 1))
    return sorted_N[index]
