"""The part of a linear layer's weight that may not move, and the rule of the subspace anchor for what it is.

A block of a weight W (E, D) is a tensor of orthonormal input directions U (D, K): W U may not move. Where U are the
leading directions of the layer's pretrained inputs (`_factors`), its outputs on those stay what they are (GPM: Saha,
Garg and Roy, arXiv 2103.09762). The rule counts directions and not their energy: in real language models one direction
may hold nearly all of a layer's energy, and the others what the layer knows.

Shape suffixes: D inputs, E outputs of a linear layer, K directions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from aegis_policy.isolation._factors import DEFAULT_SHARE, LinearFactors, direction_count

_SAME = 1e-10
"""Directions whose squared sine is below this share are the same one, known to float32."""


def select_blocks(factors: Mapping[str, LinearFactors], share: float = DEFAULT_SHARE) -> dict[str, Tensor]:
    """The leading input directions of every layer, as many as a share of its inputs.

    A spectrum that holds fewer gives all that it has. Layers with the same `Spectrum` object get the same tensor.

    Args:
        factors: by layer.
        share: in (0, 1].

    Returns:
        A block (D, K) for each layer, orthonormal to float32: files hold eigenvectors rounded.

    Raises:
        ValueError: the share is out of range.
    """
    found: dict[int, Tensor] = {}
    for inputs, _ in factors.values():
        if id(inputs) not in found:
            leading = inputs.leading(direction_count(len(inputs.vectors_DK), share))
            found[id(inputs)] = torch.linalg.qr(leading.vectors_DK.float()).Q
    return {name: found[id(layer.inputs)] for name, layer in factors.items()}


def join(blocks: Sequence[Tensor]) -> Tensor:
    """One block that spans all `blocks` of a weight, as tied layers have; a single one is left as it is.

    Holding one after the other would move a part of the first again, for their directions are not orthogonal to each
    other's.
    """
    if len(blocks) == 1:
        return blocks[0]
    left, values, _ = torch.linalg.svd(
        torch.cat([block.double() for block in blocks], 1), full_matrices=False
    )
    return left[:, values.square() > _SAME * values[0].square()].float()
