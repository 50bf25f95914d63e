"""One Gram-Schmidt step: take out of the task gradient what points against the anchor gradient."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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

    No value is read back to the host.

    Args:
        task_grads: the layer's task gradients, of any floating dtype; changed in place.
        anchor_grads: the layer's anchor gradients, of the same shapes.

    Returns:
        What happened, computed in float32 or better.
    """
    dtype = torch.promote_types(anchor_grads[0].dtype, torch.float32)
    g = torch.cat([grad.reshape(-1).to(dtype) for grad in task_grads])
    a = torch.cat([grad.reshape(-1).to(dtype) for grad in anchor_grads])
    d, energy, a_squared = torch.dot(g, a), torch.dot(g, g), torch.dot(a, a)

    usable = a_squared.isfinite() & (a_squared >= _SMALLEST_SQUARE)
    conflict = usable & (d < 0) & d.isfinite() & (energy >= _SMALLEST_SQUARE)

    remainder = torch.addcmul(g, a, d / a_squared, value=-1)
    remainder.addcmul_(a, torch.dot(remainder, a) / a_squared, value=-1)
    remainder.mul_(torch.dot(remainder, remainder) > _NOISE_SQUARE * energy)
    projected = torch.where(conflict, remainder, g)

    sizes = [grad.numel() for grad in task_grads]
    pieces = [piece.view_as(grad) for piece, grad in zip(projected.split(sizes), task_grads, strict=True)]
    torch._foreach_copy_(list(task_grads), pieces)
    shed = torch.where(conflict, d * (d / a_squared), 0.0)
    return LayerProjection(conflict, usable, energy, shed)
