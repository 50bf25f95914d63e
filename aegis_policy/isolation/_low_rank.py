"""Keeps the protected components of linear layers' weights where they are."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from aegis_policy.isolation._blocked_components import BlockedComponents
from aegis_policy.isolation._joined_components import JoinedComponents, join
from aegis_policy.isolation._numerics import squared_norm, whole_float32_products
from aegis_policy.isolation._projector import PLACES, Descent, Projector, gradient_of, one_of


class LowRankProjector(Projector):
    """Takes the blocked components out of every step of the layers' weights.

    With the input directions U, output directions V and strengths S of its `BlockedComponents`, the step D of a
    weight becomes

        D - V (S * (V^T D U)) U^T

    With hard blocks that act on updates, the weights' own components V^T W U under S stay what they are, to the
    weights' precision, however long the training lasts; outputs on inputs in the span of U then do not move along V.
    Nothing is computed on the data: no second backward pass, no communication between ranks.

    Attributes:
        blocks: every weight that learns, with what may not move of it.

    Args:
        layers: linear layers by name. A layer without a block is left alone.
        blocks: by layer name, see `select_blocks`. Those of layers that share one weight are joined.
        acts_on: the step to project, see `Projector`.

    Raises:
        ValueError: a block belongs to no layer or does not fit it, no blocked layer can learn, a layer's weight is
            computed from others, or two weights that are no one parameter lie in the same memory.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Linear],
        blocks: Mapping[str, BlockedComponents],
        acts_on: str = "update",
    ) -> None:
        if unknown := sorted(blocks.keys() - layers.keys()):
            raise ValueError(
                f"There are blocks for {', '.join(unknown)}, which are no layers of this model: "
                "select blocks of its own."
            )
        self.acts_on = one_of("acts_on", acts_on, PLACES)
        _require_own_memory(layers)
        by_weight: dict[nn.Parameter, list[BlockedComponents]] = {}
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
        self.blocks: list[tuple[nn.Parameter, BlockedComponents | JoinedComponents]] = [
            (weight, join(together)) for weight, together in by_weight.items()
        ]
        self._shed: Tensor | None = None

    @property
    def protected(self) -> list[nn.Parameter]:
        return [weight for weight, _ in self.blocks]

    def prepare(self) -> None:
        """Blocks are always at hand."""

    @torch.no_grad()
    def project_(self, descent: Descent = gradient_of) -> None:
        steps = [
            (index, step)
            for index, (weight, _) in enumerate(self.blocks)
            if (step := descent(weight)) is not None
        ]
        if not steps:
            self._shed = None
            return
        whole = torch.stack([squared_norm(step) for _, step in steps]).sum()
        with whole_float32_products(steps[0][1].device):
            removed = torch.stack([self._block(index, step).remove_(step) for index, step in steps]).sum()
        self._shed = removed / whole

    @torch.no_grad()
    def blocked_share(self, gradient: Descent) -> Tensor:
        """The share of a gradient's squared norm, over all blocked layers, that lies in the blocks, a scalar.

        If the gradient is that of what is to be kept, this is what the blocks hold of it; the task may change the rest.

        Args:
            gradient: of each protected parameter, or None where there is none.

        Raises:
            ValueError: there is none at all.
        """
        inside, whole = [], []
        with whole_float32_products(self.blocks[0][0].device):
            for index, (weight, _) in enumerate(self.blocks):
                if (other := gradient(weight)) is not None:
                    whole.append(squared_norm(other))
                    inside.append(self._block(index, other).remove_(other.clone()))
        if not whole:
            raise ValueError(
                "The gradient reaches none of the blocked weights: give one of a loss that depends on them."
            )
        return torch.nan_to_num(torch.stack(inside).sum() / torch.stack(whole).sum())

    def clear(self) -> None:
        """Nothing of a step is kept, apart from its figures."""

    def metrics(self) -> dict[str, float]:
        """`blocked_energy`: the share of the last step's squared norm, over all blocked layers, that was taken away."""
        return {"blocked_energy": 0.0 if self._shed is None else float(torch.nan_to_num(self._shed))}

    def _block(self, index: int, step: Tensor) -> BlockedComponents | JoinedComponents:
        """The block as the step needs it, which is kept: it moves to another device or dtype once."""
        weight, block = self.blocks[index]
        self.blocks[index] = weight, block.to(step)
        return self.blocks[index][1]


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


def _check_fit(name: str, weight: nn.Parameter, block: BlockedComponents) -> None:
    outputs = None if block.output_vectors_EJ is None else block.output_vectors_EJ.shape[0]
    inputs = block.input_vectors_DK.shape[0]
    if inputs != weight.shape[1] or outputs not in (None, weight.shape[0]):
        raise ValueError(
            f"The block of {name} is for a weight of shape ({outputs or weight.shape[0]}, {inputs}), but it has "
            f"{tuple(weight.shape)}: select blocks of this model."
        )
