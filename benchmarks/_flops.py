"""Model FLOPs of a training step, and what a card can do at most: the two numbers of MFU (PaLM, arXiv 2204.02311)."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

_PEAKS = {
    "H200 NVL": 835e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Part of a card's name -> FLOP/s of dense bfloat16 by its data sheet; of those that fit, the first counts."""


def peak_flops(card: str) -> float | None:
    """What a card of this name reaches at most; None if it is not known."""
    return next((peak for name, peak in _PEAKS.items() if name in card), None)


def training_flops(model: nn.Module, step: Callable[[], object]) -> float:
    """FLOPs of the linear layers in a step: 2 a parameter and token forward, 2 more for the gradient of a weight that
    learns, 2 more for that of an input that something behind needs.

    So 6 a parameter and token of what learns, 4 of what is frozen above something that learns, 2 of what is frozen
    below. Attention between tokens is left out, and so is all that is no part of the flow loss: recomputed activations,
    the Gaussian anchor's second backward, projection, clipping, optimizer.

    Args:
        model: whose linear layers are counted as they run.
        step: runs it forward once, and recomputes nothing.
    """
    return sum(flops_by_layer(model, step).values(), 0.0)


def flops_by_layer(model: nn.Module, step: Callable[[], object]) -> dict[str, float]:
    """What `training_flops` adds up, by the name of the linear layer; those that did not run are left out."""
    flops: dict[str, float] = {}
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        passes = 1
        if torch.is_grad_enabled():
            passes += layer.weight.requires_grad + inputs[0].requires_grad
        name = names[layer]
        flops[name] = flops.get(name, 0.0) + 2.0 * passes * inputs[0].numel() * layer.out_features

    handles = [layer.register_forward_hook(count) for layer in names]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return flops


def with_more_layers(flops: Mapping[str, float], stacks: Mapping[str, int]) -> dict[str, float]:
    """`flops_by_layer` of a model with more layers than were counted.

    The layers of a stack are alike but for its first, below which nothing may learn: of what was counted the first
    remains, and the second stands for all the others.

    Args:
        flops: of a model with two layers or more in every stack.
        stacks: the name of each list of layers, and how many it is to have.
    """
    more: dict[str, float] = {}
    for name, value in flops.items():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack is None:
            more[name] = value
            continue
        index, *below = name.removeprefix(f"{stack}.").split(".")
        stands_for = {"0": range(1), "1": range(1, stacks[stack])}.get(index, range(0))
        more |= {".".join([stack, str(layer), *below]): value for layer in stands_for}
    return more
