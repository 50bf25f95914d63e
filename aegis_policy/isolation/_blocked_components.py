"""The components of a linear layer's weight that may not move: the heaviest for the pretrained model's answers.

Take the eigenpairs (a_k, u_k) of a layer's input covariance and (g_j, v_j) of that of its output gradients
(`_factors`). A change D of the weights splits into components v_j^T D u_k, and moves the answers by a Fisher weight of
about g_j a_k each (K-FAC: Martens and Grosse, arXiv 1503.05671). Protecting the heaviest components protects the
answers; with the input covariance alone (G = I) whole input directions are protected (GPM, arXiv 2103.09762).

Shape suffixes: D inputs, E outputs of a linear layer, K input and J output eigenpairs.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._factors import LinearFactors
from aegis_policy.isolation._numerics import squared_norm
from aegis_policy.isolation._sketch import Spectrum

_NEGLIGIBLE = 0.01
"""Directions of which a block would take less than this share are left out of it."""


class BlockedComponents(NamedTuple):
    """The part of a linear layer's weight (E, D) that may not move; a block, for short.

    Attributes:
        input_vectors_DK: orthonormal input directions.
        output_vectors_EJ: orthonormal output directions, or None for all of them.
        strength: (J, K), or (K,) without output directions: which share of a component is taken away.
    """

    input_vectors_DK: Tensor
    output_vectors_EJ: Tensor | None
    strength: Tensor

    @property
    def directions(self) -> int:
        """How many input directions have a part that is taken away."""
        return self.input_vectors_DK.shape[1]

    def remove_(self, change_ED: Tensor) -> Tensor:
        """Take the protected components out of `change_ED`, in place; two thin products a side.

        Returns:
            The squared norm of what was taken away, a scalar.
        """
        removed = self.coefficients(change_ED) * self.strength
        change_ED.addmm_(self.along_outputs(removed), self.input_vectors_DK.T, alpha=-1)
        return squared_norm(removed)

    def coefficients(self, change_ED: Tensor) -> Tensor:
        """The components V^T D U of a change: (J, K), or (E, K) without output directions."""
        change_EK = change_ED @ self.input_vectors_DK
        return change_EK if self.output_vectors_EJ is None else self.output_vectors_EJ.T @ change_EK

    def along_outputs(self, coefficients: Tensor) -> Tensor:
        """The matrix V C (E, K) of coefficients C, which `input_vectors_DK.T` turns into a change."""
        return coefficients if self.output_vectors_EJ is None else self.output_vectors_EJ @ coefficients

    def to(self, like: Tensor) -> "BlockedComponents":
        """The same block on the device and in the dtype of `like`."""
        outputs = None if self.output_vectors_EJ is None else self.output_vectors_EJ.to(like)
        return BlockedComponents(self.input_vectors_DK.to(like), outputs, self.strength.to(like))


def select_blocks(
    factors: Mapping[str, LinearFactors],
    groups: Sequence[Sequence[str]],
    energy: float,
    *,
    use_outputs: bool,
    soft: bool = False,
) -> dict[str, BlockedComponents]:
    """The components that carry the share `energy` of each group's Fisher weight, heaviest first.

    Component (j, k) of a layer weighs g_j a_k, or a_k without output factors. In each group the threshold t is the
    weight at which the components that are at least as heavy sum up to `energy` of the group's total (the
    product of the traces). Hard blocks take those components away whole; soft ones the share w / (w + t) of every
    component of weight w, which is one half at the threshold.

    Args:
        factors: by layer.
        groups: names of layers that share a threshold; a layer in no group has no block.
        energy: in (0, 1].
        use_outputs: weigh with the output factors too.
        soft: see above.

    Returns:
        Blocks by layer; a layer without a protected component has none.

    Raises:
        ValueError: the eigenpairs kept hold less than `energy`, or factors are missing.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy} must lie between 0 and 1.")
    if unknown := sorted({name for names in groups for name in names} - factors.keys()):
        raise ValueError(f"There are no factors of {', '.join(unknown)}: gather them, or leave them out.")
    blocks = {}
    for names in groups:
        weights = {name: _weights(name, factors[name], use_outputs) for name in names}
        threshold = _threshold(weights, factors, energy, use_outputs)
        for name, weight in weights.items():
            strength = weight / (weight + threshold) if soft else (weight >= threshold).to(weight)
            block = _trim(factors[name], strength, use_outputs)
            if block is not None:
                blocks[name] = block
    return blocks


def _weights(name: str, layer: LinearFactors, use_outputs: bool) -> Tensor:
    if not use_outputs:
        return layer.inputs.values_K
    if layer.outputs is None:
        raise ValueError(
            f"There is no output factor of {name}: gather it with outputs=True, or set use_outputs=False."
        )
    return torch.outer(layer.outputs.values_K, layer.inputs.values_K)


def _threshold(
    weights: Mapping[str, Tensor], factors: Mapping[str, LinearFactors], energy: float, use_outputs: bool
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name in weights:
        inputs, outputs, _ = factors[name]
        total += inputs.total.double() * (outputs.total.double() if use_outputs and outputs else 1.0)
    sorted_weights = torch.cat([weight.flatten() for weight in weights.values()]).sort(descending=True).values
    held = sorted_weights.double().cumsum(0)
    wanted = energy * total
    if held[-1] < wanted * (1 - 1e-4):
        raise ValueError(
            f"The eigenpairs kept hold {held[-1] / total:.1%} of the energy, less than the {energy:.1%} to protect: "
            "keep more of them, or protect less."
        )
    index = int((held < wanted).sum().clamp(max=len(held) - 1))
    return sorted_weights[index]


def _trim(layer: LinearFactors, strength: Tensor, use_outputs: bool) -> BlockedComponents | None:
    """Drop the directions of which (nearly) nothing is protected."""
    inputs, outputs, _ = layer
    if not use_outputs or outputs is None:
        kept_K = strength > _NEGLIGIBLE
        return (
            BlockedComponents(_orthonormal(inputs, kept_K), None, strength[kept_K]) if kept_K.any() else None
        )
    kept_J, kept_K = (strength > _NEGLIGIBLE).any(1), (strength > _NEGLIGIBLE).any(0)
    if not kept_J.any():
        return None
    return BlockedComponents(
        _orthonormal(inputs, kept_K), _orthonormal(outputs, kept_J), strength[kept_J][:, kept_K]
    )


def _orthonormal(spectrum: Spectrum, kept: Tensor) -> Tensor:
    """The kept eigenvectors, orthonormal to float32: files hold them rounded."""
    return torch.linalg.qr(spectrum.vectors_DK[:, kept].float()).Q
