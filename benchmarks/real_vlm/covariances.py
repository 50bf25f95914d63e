"""Whole covariances of what linear layers read, for models small enough, so that any rule can be tried on them.

Layers that read the same tensor (q, k and v; gate and up) have one. Products are float32 a batch and added in float64;
rows much longer than the others (attention sinks) are multiplied apart, or rounding would hide the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_LONG = 30.0
"""Times the median row, from which a row counts as long."""


class Covariances:
    """Uncentred covariances of the inputs of linear layers, as they are and with every row at length one.

    Attributes:
        raw, unit: layer -> (D, D) float64, sums over rows; layers that share an input share the tensor. `unit` is empty
            unless `units` was asked for.
    """

    def __init__(self, layers: Mapping[str, nn.Module], *, units: bool = False) -> None:
        self.layers, self.units = layers, units
        self.raw: dict[str, Tensor] = {}
        self.unit: dict[str, Tensor] = {}

    @contextmanager
    def collect(self, mask_BT: Tensor | None = None) -> Iterator[None]:
        """Take in what layers read inside the block, but for padding."""
        last: list[Any] = [None, None]
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hook = layer.register_forward_pre_hook(partial(self._see, name, mask_BT, last))
                hooks.callback(hook.remove)
            yield

    @torch.no_grad()
    def _see(self, name: str, mask_BT: Tensor | None, last: list[Any], layer: nn.Module, args: Any) -> None:
        if args[0] is last[0]:
            self.raw[name] = self.raw[last[1]]
            if self.units:
                self.unit[name] = self.unit[last[1]]
            return
        last[:] = args[0], name
        x_ND = args[0].detach().flatten(0, -2).float()
        if mask_BT is not None:
            x_ND = x_ND[mask_BT.flatten()]
        lengths_N1 = x_ND.norm(dim=1, keepdim=True)
        long_N = (lengths_N1 > _LONG * lengths_N1.median()).squeeze(1)
        for rows_ND in (x_ND[~long_N], x_ND[long_N]):
            _add(self.raw, name, rows_ND.T @ rows_ND)
        if self.units:
            unit_ND = x_ND / lengths_N1.clamp(min=1e-12)
            _add(self.unit, name, unit_ND.T @ unit_ND)


class WeightedCovariances:
    """Covariances of inputs, each row weighted by the squared gradient of the layer's output there.

    Attributes:
        sums: layer -> (D, D) float64, the sum over rows and backward passes of |g|^2 x x^T.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = layers
        self.sums: dict[str, Tensor] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Take in what layers read inside the block, whenever a backward pass reaches them."""
        with ExitStack() as hooks:
            for name, layer in self.layers.items():
                hooks.callback(layer.register_forward_hook(partial(self._see, name)).remove)
            yield

    def _see(self, name: str, layer: nn.Module, args: Any, output: Tensor) -> None:
        x_ND = args[0].detach().flatten(0, -2).float()

        def weigh(gradient: Tensor) -> None:
            weighted_ND = x_ND * gradient.flatten(0, -2).float().norm(dim=1, keepdim=True)
            _add(self.sums, name, weighted_ND.T @ weighted_ND)

        output.register_hook(weigh)


def _add(sums: dict[str, Tensor], name: str, product: Tensor) -> None:
    if name in sums:
        sums[name] += product
    else:
        sums[name] = product.double()
