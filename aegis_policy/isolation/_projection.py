"""One Gram-Schmidt step: take out of the task gradient what points against the anchor gradient."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._numerics import at_least_float32, most_precise, unit_of

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

    Both sides are taken in a unit of their own, a power of two about as large as their largest value: squares of
    float32 gradients above 1e19 or below 1e-19 would be infinite or zero.

    In float32 the rounding of d leaves a cosine of about 1e-7 ||g_before|| / ||g_after||. The step is
    therefore applied a second time to its own result ("twice is enough", Parlett 1980), and a remainder that
    is nothing but rounding, of gradients exactly opposed, becomes zero.

    No value is read back to the host, and no more than a single pair of tensors is held twice.

    Args:
        task_grads: the layer's task gradients, of any floating dtype; changed in place.
        anchor_grads: the layer's anchor gradients, of the same shapes.

    Returns:
        What happened; energies in float64 where the device has that.
    """
    g_unit, a_unit = unit_of(task_grads), unit_of(anchor_grads)

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for g, a in zip(task_grads, anchor_grads, strict=True):
            g_scaled = at_least_float32(g) / g_unit
            yield g_scaled, a.to(g_scaled) / a_unit

    d, energy, a_squared = torch.stack(
        [torch.stack([_dot(g, a), _dot(g, g), _dot(a, a)]) for g, a in pairs()]
    ).sum(0)
    usable = a_squared.isfinite() & (a_squared > 0)
    conflict = usable & (d < 0) & energy.isfinite() & (energy > 0)

    once = d / a_squared
    left = torch.stack([_dot(_without(g, a, once), a) for g, a in pairs()]).sum()
    left_energy = []
    for g, (g_scaled, a) in zip(task_grads, pairs(), strict=True):
        remainder = _without(g_scaled, a, once, left / a_squared)
        left_energy.append(_dot(remainder, remainder))
        g.copy_(torch.where(conflict, remainder * g_unit, g))
    only_rounding = conflict & (torch.stack(left_energy).sum() <= _NOISE_SQUARE * energy)
    torch._foreach_mul_(list(task_grads), (~only_rounding).to(energy))

    unit_square = most_precise(g_unit).square()
    shed = torch.where(conflict, most_precise(d * once), 0.0)
    return LayerProjection(conflict, usable, most_precise(energy) * unit_square, shed * unit_square)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return torch.dot(x.reshape(-1), y.reshape(-1))


def _without(g: Tensor, a: Tensor, *factors: Tensor) -> Tensor:
    """`g - factors[0] a - factors[1] a ...`, one after the other."""
    for factor in factors:
        g = torch.addcmul(g, a, factor, value=-1)
    return g
