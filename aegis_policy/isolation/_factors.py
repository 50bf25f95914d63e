"""What a pretrained model's answers need of each linear layer: two covariances, and which components they protect.

For a linear layer y = W x the anchor keeps the uncentred covariance A of its inputs and, for the Kronecker anchor, the
covariance G of the loss's gradients with respect to its outputs, with eigenpairs (a_k, u_k) and (g_j, v_j). A
change D of the weights splits into components v_j^T D u_k, and moves the answers by a Fisher weight of about g_j a_k
each (K-FAC: Martens and Grosse, arXiv 1503.05671). Protecting the heaviest components protects the answers; with
the input covariance alone (G = I) whole input directions are protected (GPM, arXiv 2103.09762).

Shape suffixes: B batch, T tokens, N rows, D inputs, E outputs of a linear layer, K input and J output eigenpairs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aegis_policy.isolation._sketch import CovarianceSketch, Spectrum

_NEGLIGIBLE = 0.01
"""Directions of which a soft block would take less than this share are left out of it."""


class LinearFactors(NamedTuple):
    """Of one linear layer: the spectrum of its inputs and, if known, that of its output gradients.

    Inputs are averaged over tokens and output gradients summed, so that the products of both are comparable between
    layers that see different numbers of tokens (K-FAC's "expand", arXiv 2311.00636).
    """

    inputs: Spectrum
    outputs: Spectrum | None = None


class FactorAccumulator:
    """Gathers the factors of linear layers from the passes that run inside `collect`.

    Args:
        layers: linear layers by name; each receives (..., D).
        rank: eigenpairs kept a factor.
        outputs: gather the output factor too: run a backward pass inside `collect`.
        seed: of the sketches' test matrices.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], rank: int, *, outputs: bool = True, seed: int = 0
    ) -> None:
        self.layers = dict(layers)
        self.inputs = {
            name: CovarianceSketch(layer.in_features, rank, seed) for name, layer in layers.items()
        }
        self.outputs = (
            {name: CovarianceSketch(layer.out_features, rank, seed) for name, layer in layers.items()}
            if outputs
            else {}
        )

    @contextmanager
    def collect(self, weights_BT: Tensor | None = None) -> Iterator[None]:
        """Take the inputs of each layer that runs inside the block, and the gradients of its outputs.

        Args:
            weights_BT: how much each token's input counts, 0 for padding; None counts all alike.
        """
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hook = layer.register_forward_hook(partial(self._see, name, weights_BT))
                hooks.callback(hook.remove)
            yield

    def factors(self) -> dict[str, LinearFactors]:
        """The factors by layer.

        Raises:
            ValueError: a layer never ran, or never had a gradient.
        """
        factors = {}
        for name in self.layers:
            try:
                inputs = self.inputs[name].spectrum().scaled(1 / float(self.inputs[name].weight))
                factors[name] = LinearFactors(inputs, self.outputs[name].spectrum() if self.outputs else None)
            except ValueError as error:
                raise ValueError(f"Layer {name}: {error}") from error
        return factors

    def state(self) -> dict[str, Tensor]:
        """Flat tensors that `load_state` of an accumulator of the same layers and rank continues from."""
        return {
            f"{side}.{name}.{key}": tensor
            for side, sketches in (("inputs", self.inputs), ("outputs", self.outputs))
            for name, sketch in sketches.items()
            for key, tensor in sketch.state().items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the accumulator that returned `state` was."""
        for side, sketches in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, sketch in sketches.items():
                sketch.load_state({key: state[f"{side}.{name}.{key}"] for key in sketch.state()})

    def _see(
        self, name: str, weights_BT: Tensor | None, layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        weights_N = None if weights_BT is None else weights_BT.flatten()
        self.inputs[name].update(args[0].flatten(0, -2), weights_N)
        if self.outputs and output.requires_grad:
            output.register_hook(partial(self._see_gradient, name))

    def _see_gradient(self, name: str, gradient: Tensor) -> None:
        self.outputs[name].update(gradient.flatten(0, -2))


class Block(NamedTuple):
    """The part of a linear layer's weight (E, D) that may not move.

    Attributes:
        input_vectors_DK: orthonormal input directions.
        output_vectors_EJ: orthonormal output directions, or None for all of them.
        strength: (J, K), or (K,) without output directions: which share of a component is taken away.
    """

    input_vectors_DK: Tensor
    output_vectors_EJ: Tensor | None
    strength: Tensor

    def remove_(self, change_ED: Tensor) -> Tensor:
        """Take the protected components out of `change_ED`, in place; two thin products a side.

        Returns:
            The squared norm of what was taken away, a scalar.
        """
        component = change_ED @ self.input_vectors_DK
        if self.output_vectors_EJ is not None:
            component = self.output_vectors_EJ.T @ component
        component = component * self.strength
        shed = component.square().sum()
        if self.output_vectors_EJ is not None:
            component = self.output_vectors_EJ @ component
        change_ED.addmm_(component, self.input_vectors_DK.T, alpha=-1)
        return shed

    def to(self, like: Tensor) -> "Block":
        """The same block on the device and in the dtype of `like`."""
        outputs = None if self.output_vectors_EJ is None else self.output_vectors_EJ.to(like)
        return Block(self.input_vectors_DK.to(like), outputs, self.strength.to(like))


def select_blocks(
    factors: Mapping[str, LinearFactors],
    groups: Sequence[Sequence[str]],
    energy: float,
    *,
    use_outputs: bool,
    soft: bool = False,
) -> dict[str, Block]:
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
        ValueError: the eigenpairs kept hold less than `energy`, or output factors are missing.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy={energy} must lie between 0 and 1.")
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
        raise ValueError(f"The anchor holds no output factor of {name}.")
    return torch.outer(layer.outputs.values_K, layer.inputs.values_K)


def _threshold(
    weights: Mapping[str, Tensor], factors: Mapping[str, LinearFactors], energy: float, use_outputs: bool
) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name in weights:
        inputs, outputs = factors[name]
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


def _trim(layer: LinearFactors, strength: Tensor, use_outputs: bool) -> Block | None:
    """Drop the directions of which (nearly) nothing is protected."""
    inputs, outputs = layer
    if not use_outputs or outputs is None:
        kept_K = strength > _NEGLIGIBLE
        return Block(_orthonormal(inputs, kept_K), None, strength[kept_K]) if kept_K.any() else None
    kept_J, kept_K = (strength > _NEGLIGIBLE).any(1), (strength > _NEGLIGIBLE).any(0)
    if not kept_J.any():
        return None
    return Block(_orthonormal(inputs, kept_K), _orthonormal(outputs, kept_J), strength[kept_J][:, kept_K])


def _orthonormal(spectrum: Spectrum, kept: Tensor) -> Tensor:
    """The kept eigenvectors, orthonormal to float32: files hold them rounded."""
    return torch.linalg.qr(spectrum.vectors_DK[:, kept].float()).Q
