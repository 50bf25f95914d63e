"""What a pretrained model's answers need of each linear layer: a covariance of its inputs, and one of its outputs.

For a linear layer y = W x the anchor keeps the uncentred covariance A of its inputs and, for the Kronecker anchor, the
covariance G of the loss's gradients with respect to its outputs. Which components of the weight they protect is decided
in `_blocked_components`.

Shape suffixes: B batch, T tokens, N rows, D inputs, E outputs of a linear layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from aegis_policy.isolation._sketch import CovarianceSketch, Spectrum


class LinearFactors(NamedTuple):
    """The spectrum of a linear layer's inputs and, if known, that of its output gradients.

    Inputs are averaged over tokens and output gradients summed, so that the products of both are comparable between
    layers that see different numbers of tokens (K-FAC's "expand", arXiv 2311.00636).

    Attributes:
        inputs: one object for layers that read the same inputs.
        outputs: None if they were not gathered.
        gradient_K: for each direction kept of the inputs, the share of the squared norm of the answers' gradient in
            the weight that lies along it; None if it is not known.
    """

    inputs: Spectrum
    outputs: Spectrum | None = None
    gradient_K: Tensor | None = None


class FactorAccumulator:
    """Gathers the factors of linear layers from the passes that run inside `collect`.

    Args:
        layers: linear layers by name; each receives (..., D).
        rank: eigenpairs kept a factor.
        outputs: gather the output factor too: run a backward pass inside `collect`.
        seed: of the sketches' test matrices.

    Raises:
        ValueError: a layer is not linear, or the rank is not positive.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], rank: int, *, outputs: bool = True, seed: int = 0
    ) -> None:
        self.layers = dict(layers)
        for name, layer in layers.items():
            if not isinstance(getattr(layer, "in_features", None), int):
                raise ValueError(
                    f"Layer {name} is {type(layer).__name__}, and only linear layers have these factors: leave it out."
                )
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
            if not self.inputs[name].weight > 0:
                raise ValueError(
                    f"Layer {name} never ran inside collect(): run it, or leave it out if something else reads its "
                    "weight, as nn.MultiheadAttention does."
                )
            if self.outputs and not self.outputs[name].weight > 0:
                raise ValueError(
                    f"Layer {name} never had a gradient of its outputs: run a backward pass inside collect(), to a "
                    "parameter or an input that requires gradients below this layer, or gather with outputs=False."
                )
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
