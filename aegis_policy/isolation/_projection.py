"""One Gram-Schmidt step: take out of the task gradient what points against the anchor gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._numerics import at_least_float32

_SMALLEST_SQUARE = torch.finfo(torch.float32).tiny  # a squared norm below it has lost digits, or is zero
_NOISE_SQUARE = 1e-12  # a remainder shorter than 1e-6 of the gradient it came from is float32 rounding


class LayerProjection(NamedTuple):
    """What the projection did to one layer; every field is a scalar tensor on the gradients' device.

    Attributes:
        conflict: bool, whether the task gradient pointed against the anchor gradient and was projected.
        usable: bool, whether the anchor gradient had a direction: finite and not zero.
        energy: squared norm of the task gradient before.
        shed: how much of `energy` the projection took away.
    """

    conflict: Tensor
    usable: Tensor
    energy: Tensor
    shed: Tensor


@torch.no_grad()
def project_(task_grads: Sequence[Tensor], anchor_grads: Sequence[Tensor]) -> LayerProjection:
    """Project one layer's task gradients, in place, out of conflict with its anchor gradients.

    With both lists flattened into vectors g and a (AEGIS, arXiv 2604.16067; PCGrad, arXiv 2001.06782, applied
    to one side only):

        d = <g, a>
        g <- g - d / ||a||^2 a      if d < 0
        g <- g                      otherwise, bit for bit

    The division is exact: an epsilon in the denominator would leave an inner product of d eps / (||a||^2 +
    eps). An anchor gradient without a direction (zero or not finite) leaves g alone and is reported as not
    `usable`.

    In float32 the rounding of d leaves a cosine of about 1e-7 ||g_before|| / ||g_after||. The step is
    therefore applied a second time to its own result ("twice is enough", Parlett 1980), and a remainder that
    is nothing but rounding, of gradients exactly opposed, becomes zero.

    No value is read back to the host, and no more than a single tensor is held twice.

    Args:
        task_grads: the layer's task gradients, of any floating dtype; changed in place.
        anchor_grads: the layer's anchor gradients, of the same shapes.

    Returns:
        What happened, computed in float32 or better.
    """
    d, energy = _dot(task_grads, anchor_grads), _dot(task_grads, task_grads)
    a_squared = _dot(anchor_grads, anchor_grads)

    usable = a_squared.isfinite() & (a_squared >= _SMALLEST_SQUARE)
    conflict = usable & (d < 0) & d.isfinite() & (energy >= _SMALLEST_SQUARE)

    pairs = list(zip(task_grads, anchor_grads, strict=True))
    once = d / a_squared
    left = torch.stack([_dot([_without(g, a, once)], [a]) for g, a in pairs]).sum()
    left_energy = []
    for g, a in pairs:
        remainder = _without(g, a, once, left / a_squared)
        left_energy.append(_dot([remainder], [remainder]))
        g.copy_(torch.where(conflict, remainder, g))
    only_rounding = conflict & (torch.stack(left_energy).sum() <= _NOISE_SQUARE * energy)
    torch._foreach_mul_(list(task_grads), (~only_rounding).to(energy))
    return LayerProjection(conflict, usable, energy, torch.where(conflict, d * once, 0.0))


def _dot(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensor:
    """The inner product of two vectors in parts, in float32 or better."""
    return torch.stack([_flat_dot(x, y) for x, y in zip(xs, ys, strict=True)]).sum()


def _flat_dot(x: Tensor, y: Tensor) -> Tensor:
    x = at_least_float32(x).reshape(-1)
    return torch.dot(x, y.reshape(-1).to(x))


def _without(g: Tensor, a: Tensor, *factors: Tensor) -> Tensor:
    """`g - factors[0] a - factors[1] a ...` in `a`'s precision, one after the other."""
    for factor in factors:
        g = torch.addcmul(g.to(a), a, factor, value=-1)
    return g
