"""What a pretrained model reads in each linear layer: the uncentred covariance of its inputs.

Which part of the layer's weight it protects is decided in `_blocks`.

Shape suffixes: B batch, T tokens, D inputs of a linear layer, K directions kept.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from aegis_policy.isolation._rows import EveryRow, Rows, WeightedRows
from aegis_policy.isolation._sketch import CovarianceSketch, Spectrum

DEFAULT_SHARE = 0.07
"""The share of every layer's input directions that an anchor keeps and `subspace` protects (docs/ablation.md)."""


def direction_count(width: int, share: float) -> int:
    """How many directions a share of `width` inputs is: rounded, and at least one.

    Raises:
        ValueError: the share is not above 0, or above 1.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie between 0 and 1.")
    return max(1, round(share * width))


class LinearFactors(NamedTuple):
    """The spectrum of a linear layer's inputs, averaged over tokens, and what is known of its directions.

    Attributes:
        inputs: one object for layers that read the same inputs.
        gradient_K: for each direction kept of the inputs, the share of the squared norm of the answers' gradient in
            the weight that lies along it; None if it is not known.
    """

    inputs: Spectrum
    gradient_K: Tensor | None = None


class Weigh(Protocol):
    """Says how much the rows of the next batch count."""

    def __call__(self, weights_BT: Tensor) -> None: ...


class FactorAccumulator:
    """Gathers the factors of linear layers from the passes that run inside `collect`.

    Layers that read the very same tensor (queries, keys and values; gate and up) share a sketch and a spectrum.

    Args:
        layers: linear layers by name; each receives (..., D).
        share: of every layer's input directions to keep.
        seed: of the sketches' test matrices.

    Raises:
        ValueError: a layer is not linear, or the share is not above 0, or above 1.
    """

    def __init__(
        self, layers: Mapping[str, nn.Linear], share: float = DEFAULT_SHARE, *, seed: int = 0
    ) -> None:
        self.layers = dict(layers)
        for name, layer in layers.items():
            if not isinstance(getattr(layer, "in_features", None), int):
                raise ValueError(
                    f"Layer {name} is {type(layer).__name__}, and only linear layers have these factors: leave it out."
                )
        self._ranks = {name: direction_count(layer.in_features, share) for name, layer in layers.items()}
        self._seed = seed
        self._first_reader: dict[str, str] = {}
        self._sketches: dict[str, CovarianceSketch] = {}

    @property
    def seen(self) -> float:
        """How many rows the layer that saw most has seen, each counting its weight."""
        return max((sketch.weight for sketch in self._sketches.values()), default=0.0)

    @property
    def widest(self) -> int:
        """The number of inputs of the widest layer."""
        return max((layer.in_features for layer in self.layers.values()), default=0)

    @contextmanager
    def collect(self, weights_BT: Tensor | None = None, *, every: EveryRow | None = None) -> Iterator[Weigh]:
        """Take the inputs of each layer that runs inside the block.

        Args:
            weights_BT: how much each token's input counts, 0 for padding; None counts all alike.
            every: which rows to take where all count alike.

        Yields:
            What to call between two passes inside the block, with the weights of the second.

        Raises:
            ValueError: layers read the same tensor in one pass and two in another.
        """
        reading = _Reading(every or EveryRow())
        if weights_BT is not None:
            reading.weigh(weights_BT)
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hook = layer.register_forward_hook(partial(self._see, name, reading))
                hooks.callback(hook.remove)
            yield reading.weigh
        for name, firsts in reading.first_readers.items():
            known = self._first_reader.setdefault(name, min(firsts))
            if others := sorted(firsts - {known}):
                raise ValueError(
                    f"Layer {name} reads the same input as {known} in one pass and as {others[0]} in another: give "
                    f"{name} an accumulator of its own."
                )

    def factors(self, show: Callable[[Iterable[str]], Iterable[str]] = iter) -> dict[str, LinearFactors]:
        """The factors of all layers.

        Args:
            show: what goes through their names, to show how far it is: tqdm, say.

        Raises:
            ValueError: a layer never ran inside `collect`, or values were not finite.
        """
        spectra: dict[str, Spectrum] = {}
        factors = {}
        for name in show(self.layers):
            first = self._first_reader.get(name)
            if first is None or not self._sketches[first].weight > 0:
                raise ValueError(
                    f"Layer {name} never ran inside collect(): run it, or leave it out if something else reads its "
                    "weight, as nn.MultiheadAttention does."
                )
            try:
                if first not in spectra:
                    sketch = self._sketches[first]
                    spectra[first] = sketch.spectrum().scaled(1 / sketch.weight)
            except ValueError as error:
                raise ValueError(f"Layer {name}: {error}") from error
            factors[name] = LinearFactors(spectra[first])
        return factors

    def state(self) -> dict[str, Tensor]:
        """Flat tensors that `load_state` of an accumulator of the same layers and share continues from."""
        order = {name: index for index, name in enumerate(self.layers)}
        readers = [order[first] if (first := self._first_reader.get(name)) else -1 for name in order]
        return {
            "first_readers": torch.tensor(readers),
            **{
                f"inputs.{name}.{key}": tensor
                for name, sketch in self._sketches.items()
                for key, tensor in sketch.state().items()
            },
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the accumulator that returned `state` was."""
        names = list(self.layers)
        self._first_reader = {
            name: names[index]
            for name, index in zip(names, state["first_readers"].tolist(), strict=True)
            if index >= 0
        }
        for first in self._first_reader.values():
            self._sketch(first)
        for name, sketch in self._sketches.items():
            sketch.load_state({key: state[f"inputs.{name}.{key}"] for key in sketch.state()})

    def _see(
        self, name: str, reading: "_Reading", layer: nn.Module, args: tuple[Any, ...], output: Tensor
    ) -> None:
        if reading.is_first(name, args[0]):
            self._sketch(name).update(args[0].flatten(0, -2), reading.rows)

    def _sketch(self, name: str) -> CovarianceSketch:
        if name not in self._sketches:
            layer = self.layers[name]
            self._sketches[name] = CovarianceSketch(
                layer.in_features, self._ranks[name], self._seed, layer.weight.device
            )
        return self._sketches[name]


class _Reading:
    """What is known of the passes inside one `collect`: which rows count, and which layer read each tensor first."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.first_readers: dict[str, set[str]] = defaultdict(set)
        self._read_by = WeakIdKeyDictionary()

    def weigh(self, weights_BT: Tensor) -> None:
        self.rows = WeightedRows.by(weights_BT)

    def is_first(self, name: str, x: Tensor) -> bool:
        """Whether this layer is the first to read `x` as it is now."""
        version = 0 if x.is_inference() else x._version
        first, read = self._read_by.get(x, (name, version))
        if read != version:
            first = name
        self._read_by[x] = first, version
        self.first_readers[name].add(first)
        return bool(first == name)
