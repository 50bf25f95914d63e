"""The part of a linear layer's weight that may not move, and the rule of the subspace anchor for what it is.

Outputs W u of a layer on the leading directions u of its pretrained inputs (`_factors`) stay what they are if no step
of W has a part along them (GPM: Saha, Garg and Roy, arXiv 2103.09762). The rule counts directions and not their energy:
in real language models one direction may hold nearly all of a layer's energy, and the others what the layer knows.

Shape suffixes: D inputs, E outputs of a linear layer, K input and J output directions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._factors import DEFAULT_SHARE, LinearFactors, direction_count
from aegis_policy.isolation._sketch import Spectrum


class BlockedComponents(NamedTuple):
    """The part of a linear layer's weight (E, D) that may not move; a block, for short.

    Attributes:
        input_vectors_DK: orthonormal input directions.
        output_vectors_EJ: orthonormal output directions, or None for all of them.
        mask_JK: bool, which of the components along both may not move; None for all.
    """

    input_vectors_DK: Tensor
    output_vectors_EJ: Tensor | None = None
    mask_JK: Tensor | None = None

    @property
    def directions(self) -> int:
        """How many input directions have a part that may not move."""
        return self.input_vectors_DK.shape[1]

    def coefficients(self, matrix_ED: Tensor) -> Tensor:
        """The blocked components V^T M U of a matrix, others zero: (J, K), or (E, K) without output directions."""
        inside = matrix_ED @ self.input_vectors_DK
        if self.output_vectors_EJ is not None:
            inside = self.output_vectors_EJ.T @ inside
        return inside if self.mask_JK is None else inside * self.mask_JK

    def along_outputs(self, coefficients: Tensor) -> Tensor:
        """The matrix V C (E, K) of coefficients C, which `input_vectors_DK.T` turns into a change."""
        return coefficients if self.output_vectors_EJ is None else self.output_vectors_EJ @ coefficients

    def to(self, like: Tensor) -> "BlockedComponents":
        """The same block on the device and in the dtype of `like`."""
        outputs = None if self.output_vectors_EJ is None else self.output_vectors_EJ.to(like)
        mask = None if self.mask_JK is None else self.mask_JK.to(like.device)
        return BlockedComponents(self.input_vectors_DK.to(like), outputs, mask)


def select_blocks(
    factors: Mapping[str, LinearFactors], share: float = DEFAULT_SHARE
) -> dict[str, BlockedComponents]:
    """The leading input directions of every layer, as many as a share of its inputs.

    A spectrum that holds fewer gives all that it has. Layers with the same `Spectrum` object get the same tensor of
    directions.

    Args:
        factors: by layer.
        share: in (0, 1].

    Returns:
        A block for each layer.

    Raises:
        ValueError: the share is out of range.
    """
    found: dict[int, Tensor] = {}
    for inputs, _, _ in factors.values():
        if id(inputs) not in found:
            count = direction_count(len(inputs.vectors_DK), share)
            found[id(inputs)] = orthonormal(inputs.leading(count))
    return {name: BlockedComponents(found[id(layer.inputs)]) for name, layer in factors.items()}


def orthonormal(spectrum: Spectrum) -> Tensor:
    """The eigenvectors (D, K), orthonormal to float32: files hold them rounded."""
    return torch.linalg.qr(spectrum.vectors_DK.float()).Q
