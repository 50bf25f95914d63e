"""Float32 masters: what an optimizer steps in the place of weights that are kept in 16 bits.

A bfloat16 weight has eight bits, so a step at the rates of fine-tuning is mostly rounding, and rounding goes where no
projector allows: a part of it lies in whatever is blocked, and adds up. A master takes the whole step and is blocked to
float32; the weight is its rounding, which does not add up. Masters lie in the optimizer's state, so that they travel
with it. They cost four bytes a weight, and float32 moments and gradients while the optimizer steps.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

MASTER = "master"
"""The key of a master in the state of its weight."""
_HALF = (torch.bfloat16, torch.float16)


@contextmanager
def masters_in_place(
    optimizer: Optimizer, *, without_gradient: bool = False
) -> Iterator[dict[Tensor, Tensor]]:
    """Let masters stand in the optimizer's groups and state meanwhile, each with its weight's gradient.

    A weight that somebody else has changed (a checkpoint, an average) is what its master becomes.

    Args:
        optimizer: the weights that it steps in 16 bits have masters.
        without_gradient: weights without a gradient too.

    Yields:
        Weight -> master. Who moves the masters has `round_` move the weights.
    """
    master_of: dict[Tensor, Tensor] = {}
    for group in optimizer.param_groups:
        for index, weight in enumerate(group["params"]):
            if weight.dtype in _HALF and (without_gradient or weight.grad is not None):
                state = optimizer.state.pop(weight, {})
                master_of[weight] = group["params"][index] = _up_to_date(state.pop(MASTER, None), weight)
                if state:
                    optimizer.state[master_of[weight]] = state
    try:
        yield master_of
    finally:
        weight_of = {master: weight for weight, master in master_of.items()}
        for group in optimizer.param_groups:
            group["params"][:] = [weight_of.get(p, p) for p in group["params"]]
        for weight, master in master_of.items():
            master.grad = None
            if state := optimizer.state.pop(master, {}):
                optimizer.state[weight] = {MASTER: master, **state}


def round_(master_of: dict[Tensor, Tensor]) -> None:
    """Make the weights what their masters are, rounded."""
    for weight, master in master_of.items():
        weight.detach().copy_(master)


def _up_to_date(master: Tensor | None, weight: Tensor) -> Tensor:
    """The master of a weight, with its gradient."""
    value = weight.detach().float()
    if master is not None:
        value = torch.where(master.to(weight.dtype) == weight, master, value).detach()
    if weight.grad is not None:
        value.grad = weight.grad.float()
    return value
