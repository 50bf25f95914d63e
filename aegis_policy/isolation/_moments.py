"""Mean and deviation of hidden states over the valid tokens of one batch, or of a global batch.

Not here: moments of a stream of batches (`_moment_accumulators`), what moments are compared with (`_gaussian`), and
where hidden states come from (`_hidden_states`).

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._numerics import at_least_float32
from aegis_policy.isolation._ranks import all_reduce_sum_

EPS = 1e-6
"""Added to the variance inside the square root: the derivative of sqrt at zero variance is infinite."""


class Moments(NamedTuple):
    """Moments of every layer's hidden states over the same tokens.

    Attributes:
        tokens: number of valid tokens, a scalar of the moments' dtype.
        mean_LD: mean of each hidden dimension.
        std_LD: population standard deviation of each hidden dimension, `sqrt(variance + eps)`.
    """

    tokens: Tensor
    mean_LD: Tensor
    std_LD: Tensor


def valid_or_zero(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return `x_BTD` with padding set to zero; what padding holds (it may be NaN) never spreads."""
    return torch.where(mask_BT.unsqueeze(-1), x_BTD, 0.0)


def masked_moments(x_BTD: Tensor, mask_BT: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each hidden dimension over the valid tokens.

    Differentiable; computed in float32, or in float64 for float64 input.

    Args:
        x_BTD: hidden states.
        mask_BT: bool, True for a valid token.
        eps: added to the variance inside the square root.

    Returns:
        `(mean_D, std_D)`. A batch without a valid token has mean 0 and standard deviation `sqrt(eps)`.
    """
    x_BTD = at_least_float32(x_BTD)
    count = mask_BT.sum().clamp(min=1)
    mean_D = valid_or_zero(x_BTD, mask_BT).sum((0, 1)) / count
    variance_D = valid_or_zero(x_BTD - mean_D, mask_BT).square().sum((0, 1)) / count
    return mean_D, (variance_D + eps).sqrt()


@torch.no_grad()
def global_moments(hidden: Sequence[Tensor], mask_BT: Tensor, eps: float = EPS) -> Moments:
    """Moments of all layers over the valid tokens of all ranks, without a graph.

    Two passes, because the one-pass `E[x^2] - E[x]^2` loses every digit in the outlier dimensions of a
    residual stream. Each pass ends in one all-reduce when `torch.distributed` runs, so every rank returns the
    same numbers however its tokens are spread.

    Args:
        hidden: L tensors (B, T, D), this rank's hidden states.
        mask_BT: bool, True for a valid token.
        eps: added to the variance inside the square root.
    """
    sums_LD = torch.stack([valid_or_zero(at_least_float32(x), mask_BT).sum((0, 1)) for x in hidden])
    sums_and_count = torch.cat([sums_LD.flatten(), mask_BT.sum().to(sums_LD).reshape(1)])
    all_reduce_sum_(sums_and_count)
    count = sums_and_count[-1]
    divisor = count.clamp(min=1)
    mean_LD = sums_and_count[:-1].view_as(sums_LD) / divisor
    padding_BT1 = ~mask_BT.unsqueeze(-1)
    squares_LD = torch.stack(
        [
            (at_least_float32(x_BTD) - mean_D).masked_fill_(padding_BT1, 0.0).square_().sum((0, 1))
            for x_BTD, mean_D in zip(hidden, mean_LD, strict=True)
        ]
    )
    all_reduce_sum_(squares_LD)
    return Moments(count, mean_LD, (squares_LD / divisor + eps).sqrt())
