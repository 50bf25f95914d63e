"""Holds the protected part of linear layers' weights where it is.

A step of the optimizer may move it; it is put back afterwards. Nothing is computed on the data: no second backward
pass, no communication between ranks.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from aegis_policy.isolation._blocks import join
from aegis_policy.isolation._numerics import (
    at_least_float32,
    most_precise,
    squared_norm,
    whole_float32_products,
)
from aegis_policy.isolation._projector import (
    GradientOf,
    Projector,
    RateOf,
    ValueOf,
    own_rate,
    whole_value,
)

_ROWS = 16
"""Of how many rows of every weight `blocked_energy` is measured."""


class LowRankProjector(Projector):
    """Holds the blocked part of the layers' weights.

    With the input directions U of a weight W, which was W0 at the first step, and C = W0 U, an optimizer's step is
    followed by

        W <- W - (W U - C) U^T

    So W U stays what it is to the weights' precision, however long the training lasts, and outputs on inputs in the
    span of U do not move. C is known by the weights themselves: a training that goes on from weights that are held
    holds the same.

    A layer's weight may come to lie in pieces on several devices, as FSDP2 keeps its rows: each device holds its own
    rows, and nothing is exchanged.

    Attributes:
        every: see `Projector`. Between, weights stray by so many ordinary steps, not more: call `hold_` before the
            weights are saved or looked at.

    Args:
        layers: linear layers by name. A layer without a block is left alone.
        blocks: by layer name, see `select_blocks`. Those of layers that share one weight are joined.
        every: see above.

    Raises:
        ValueError: a block belongs to no layer or does not fit it, no blocked layer can learn, a layer's weight is
            computed from others, or two weights that are no one parameter lie in the same memory.
    """

    def __init__(self, layers: Mapping[str, nn.Linear], blocks: Mapping[str, Tensor], every: int = 1) -> None:
        if unknown := sorted(blocks.keys() - layers.keys()):
            raise ValueError(
                f"There are blocks for {', '.join(unknown)}, which are no layers of this model: "
                "select blocks of its own."
            )
        _require_own_memory(layers)
        by_weight: dict[nn.Parameter, list[Tensor]] = {}
        for name, block in blocks.items():
            weight = layers[name].weight
            assert isinstance(weight, nn.Parameter), "seen to above"
            _check_fit(name, weight, block)
            if weight.requires_grad:
                by_weight.setdefault(weight, []).append(block)
        if not by_weight:
            raise ValueError(
                "No layer with a block requires gradients, so there is nothing to protect: unfreeze one before."
            )
        layer_of = {layer.weight: layer for layer in layers.values()}
        self._blocks = [(layer_of[weight], join(together)) for weight, together in by_weight.items()]
        self.every = every
        self._held: dict[int, _Held] = {}
        self._blocked_energy = torch.zeros(())

    @property
    def blocks(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Every weight that learns, as its layer has it now, with its U."""
        return [(cast(nn.Parameter, layer.weight), block) for layer, block in self._blocks]

    @property
    def protected(self) -> list[nn.Parameter]:
        return [weight for weight, _ in self.blocks]

    def prepare(self, rate: RateOf = own_rate) -> None:
        """Blocks are always at hand."""

    @torch.no_grad()
    def remember(self, value: ValueOf = whole_value) -> None:
        """Take in what is to be held of every weight that is not yet; weights that are to be held must be here before
        they move."""
        for index, (weight, _) in enumerate(self.blocks):
            if index not in self._held and (now := _here(value(weight))) is not None:
                with whole_float32_products(now.device):
                    self._held[index] = _Held(now @ self._block(index, now), _rows(now).clone())

    @torch.no_grad()
    def hold_(self, value: ValueOf = whole_value) -> None:
        """Put the blocked part of all weights that `remember` has seen back."""
        moved, removed, scales = [], [], []
        weights = self.protected
        for index, held in list(self._held.items()):
            if (now := _here(value(weights[index]))) is None or not len(now):
                continue
            strayed = _rows(now).clone()
            with whole_float32_products(now.device):
                _hold_(now, self._block(index, now), held.outputs_EK)
            rows = _rows(now).clone()
            self._held[index] = held._replace(rows=rows)
            moved.append(strayed - held.rows)
            removed.append(strayed - rows)
            scales.append(len(now) / len(rows))
        if moved:
            whole = _total(moved, scales)
            share = _total(removed, scales) / whole
            self._blocked_energy = torch.where(whole > 0, share, self._blocked_energy.to(share))

    @torch.no_grad()
    def empty_(self) -> None:
        """Take the blocked part out of the weights, whose outputs on U are zero then."""
        for index, (weight, _) in enumerate(self.blocks):
            with whole_float32_products(weight.device):
                _hold_(weight, self._block(index, weight), weight.new_zeros(()))

    @torch.no_grad()
    def blocked_share(self, gradient: GradientOf) -> Tensor:
        """The share of a gradient's squared norm, over all blocked layers, that lies in the blocks, a scalar.

        If the gradient is that of what is to be kept, this is what the blocks hold of it; the task may change the rest.

        Args:
            gradient: of each protected parameter, or None where there is none.

        Raises:
            ValueError: there is none at all.
        """
        inside, whole = [], []
        for index, (weight, _) in enumerate(self.blocks):
            if (other := gradient(weight)) is not None:
                other = at_least_float32(other)
                with whole_float32_products(other.device):
                    inside.append(squared_norm(other @ self._block(index, other)))
                whole.append(squared_norm(other))
        if not whole:
            raise ValueError(
                "The gradient reaches none of the blocked weights: give one of a loss that depends on them."
            )
        return torch.nan_to_num(torch.stack(inside).sum() / torch.stack(whole).sum())

    def clear(self) -> None:
        """Nothing belongs to one step."""

    def metrics(self) -> dict[str, float]:
        """`blocked_energy`: of what all blocked layers had moved since the time before, the share of the squared norm
        that `hold_` took back the last time, measured on a few rows of each weight that are here."""
        return {"blocked_energy": float(self._blocked_energy)}

    def _block(self, index: int, like: Tensor) -> Tensor:
        """The block on the device and in the dtype of `like`; what weights share moves there for all of them."""
        block_DK = self._blocks[index][1]
        if block_DK.device != like.device or block_DK.dtype != like.dtype:
            moved_DK = block_DK.to(like)
            self._blocks = [(layer, moved_DK if each is block_DK else each) for layer, each in self._blocks]
        return self._blocks[index][1]


class _Held(NamedTuple):
    """What is known of a weight as it was.

    Attributes:
        outputs_EK: on the directions of its block.
        rows: `_ROWS` rows at most, when they were held the last time.
    """

    outputs_EK: Tensor
    rows: Tensor


def _hold_(weight_ED: Tensor, block_DK: Tensor, outputs_EK: Tensor) -> None:
    """Give a weight these outputs on the directions of its block."""
    weight_ED.addmm_(weight_ED @ block_DK - outputs_EK, block_DK.T, alpha=-1)


def _here(value: Tensor | None) -> Tensor | None:
    """The rows of a weight that are on this device, to be changed in place: all, unless it lies in pieces."""
    return value.to_local() if isinstance(value, DTensor) else value


def _rows(weight_ED: Tensor) -> Tensor:
    """Rows from all over a weight, `_ROWS` at most."""
    return weight_ED[:: max(1, -(-len(weight_ED) // _ROWS))]


def _total(parts: list[Tensor], scales: list[float]) -> Tensor:
    """The sum of squares of all parts, each times its scale."""
    squares = most_precise(torch.stack(torch._foreach_norm(parts))).square()
    return (squares * squares.new_tensor(scales)).sum()


def _require_own_memory(layers: Mapping[str, nn.Linear]) -> None:
    """See that what steps as one weight is one parameter: layers may share it, and must not share its memory alone."""
    spans: dict[int, tuple[str, int, int, str]] = {}
    for name, layer in layers.items():
        weight = layer.weight
        if not isinstance(weight, nn.Parameter):
            raise ValueError(
                f"The weight of {name} is computed from other parameters, which a block of it cannot hold: remove the "
                "parametrization, or leave the layer out."
            )
        if weight.data_ptr():
            length = 1 + sum(
                (size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True)
            )
            end = weight.data_ptr() + length * weight.element_size()
            spans.setdefault(id(weight), (str(weight.device), weight.data_ptr(), end, name))
    for (device, _, end, name), (other_device, start, _, other) in pairwise(sorted(spans.values())):
        if device == other_device and start < end:
            raise ValueError(
                f"The weights of {name} and {other} lie in the same memory and are two parameters, so that a step of "
                "one moves the other past its block: give both layers one parameter, or leave one out."
            )


def _check_fit(name: str, weight: nn.Parameter, block_DK: Tensor) -> None:
    if len(block_DK) != weight.shape[1]:
        raise ValueError(
            f"The block of {name} is for a weight of {len(block_DK)} inputs, but it has {weight.shape[1]}: select "
            "blocks of this model."
        )
