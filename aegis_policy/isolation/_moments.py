"""Mean and deviation of hidden states over valid tokens: of one batch, of a global batch, of a stream.

Not here: what the moments are compared with (`_gaussian`) and where hidden states come from (`_isolator`).

Shape suffixes: B batch, T tokens, D hidden dimension, L layers, N valid tokens.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor

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


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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


def all_reduce_sum_(x: Tensor) -> None:
    """Replace `x` by its sum over all ranks; a single process keeps it."""
    if is_distributed():
        dist.all_reduce(x, op=dist.ReduceOp.SUM)


def is_distributed() -> bool:
    """Whether several ranks train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_count() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if is_distributed() else 1


class MomentAverage:
    """An exponential moving average of batches' moments; with `momentum` 0 it is the last batch.

    Args:
        momentum: the share of the old average in the new one.
        like_LD: a tensor of the moments' shape.
    """

    def __init__(self, momentum: float, like_LD: Tensor) -> None:
        self.momentum = momentum
        self._batches = torch.zeros((), dtype=torch.int64)
        self._mean_LD, self._std_LD = torch.zeros_like(like_LD), torch.zeros_like(like_LD)

    def update(self, batch: Moments) -> Moments:
        """Take a batch's moments in, and return the average with that batch's number of tokens."""
        if not self.momentum:
            return batch
        old = min(int(self._batches), 1) * self.momentum
        for average_LD, batch_LD in ((self._mean_LD, batch.mean_LD), (self._std_LD, batch.std_LD)):
            average_LD.lerp_(batch_LD.to(average_LD), 1 - old)
        self._batches += 1
        return batch._replace(mean_LD=self._mean_LD.to(batch.mean_LD), std_LD=self._std_LD.to(batch.std_LD))

    def state(self) -> dict[str, Tensor]:
        """The tensors that make it up, to be saved and to be copied back into."""
        if not self.momentum:
            return {}
        return {"batches": self._batches, "mean": self._mean_LD, "std": self._std_LD}


class MomentAccumulator:
    """Moments of one layer over a stream of batches, in float64.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979): with counts a and b, means
    m_a and m_b and sums of squared deviations s_a and s_b, the union has

        m = m_a + (m_b - m_a) b / (a + b)
        s = s_a + s_b + (m_b - m_a)^2 a b / (a + b)

    so the result depends neither on the order nor on the size of the batches, up to rounding in float64.

    Attributes:
        count: valid tokens seen.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean_D = torch.zeros(0, dtype=torch.float64)
        self._squares_D = torch.zeros(0, dtype=torch.float64)

    def update(self, x_BTD: Tensor, mask_BT: Tensor) -> None:
        """Add the valid tokens of one batch of hidden states."""
        if x_BTD.device.type == "mps":
            x_BTD = x_BTD.cpu()  # which has no float64
        x_ND = x_BTD.detach()[mask_BT.to(x_BTD.device)].double()
        if len(x_ND) == 0:
            return
        mean_D = x_ND.mean(0)
        self._add(len(x_ND), mean_D.cpu(), (x_ND - mean_D).square().sum(0).cpu())

    def merge(self, other: Self) -> None:
        """Add everything another accumulator has seen, as if this one had seen it."""
        if other.count:
            self._add(other.count, other._mean_D, other._squares_D)

    def finalize(self, eps: float = EPS) -> tuple[Tensor, Tensor, int]:
        """Return `(mean_D, std_D, count)`, float64 on the CPU, with `std = sqrt(variance + eps)`.

        Raises:
            ValueError: no valid token was seen.
        """
        if self.count == 0:
            raise ValueError("No valid token was seen: give the accumulator at least one unpadded batch.")
        return self._mean_D.clone(), (self._squares_D / self.count + eps).sqrt(), self.count

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load_state` of another accumulator continues from."""
        return {"count": torch.tensor(self.count), "mean": self._mean_D, "squares": self._squares_D}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the accumulator that returned `state` was."""
        self.count = int(state["count"])
        self._mean_D, self._squares_D = state["mean"].clone(), state["squares"].clone()

    def _add(self, count: int, mean_D: Tensor, squares_D: Tensor) -> None:
        if self.count == 0:
            self.count, self._mean_D, self._squares_D = count, mean_D.clone(), squares_D.clone()
            return
        total = self.count + count
        gap_D = mean_D - self._mean_D
        self._mean_D = self._mean_D + gap_D * (count / total)
        self._squares_D = self._squares_D + squares_D + gap_D.square() * (self.count * count / total)
        self.count = total


class NoiseAccumulator:
    """By how much the moments of small batches miss those of the whole stream, which one cannot know until its end.

    Errors of a batch's moments fall as one over its size, so squared errors are weighted by the batch's samples.
    """

    def __init__(self) -> None:
        self._batches, self._samples = 0, 0
        self._sums = torch.zeros(0, dtype=torch.float64)

    def update(self, moments: Moments, samples: int) -> None:
        """Add the moments of one batch of so many samples."""
        values_2LD = torch.stack([moments.mean_LD, moments.std_LD]).detach().cpu().double()
        sums = torch.stack([values_2LD, values_2LD.square()]) * samples
        self._sums = sums if self._batches == 0 else self._sums + sums
        self._batches, self._samples = self._batches + 1, self._samples + samples

    def noise(self, mean_LD: Tensor, std_LD: Tensor) -> Tensor | None:
        """(mean - mean0)^2 + (std - std0)^2 of one sample, (L, D) in float32; None of fewer than two batches.

        Args:
            mean_LD, std_LD: moments of the whole stream.
        """
        if self._batches < 2:
            return None
        centre_2LD = torch.stack([mean_LD, std_LD]).double()
        linear_2LD, squares_2LD = self._sums
        deviations_2LD = squares_2LD - 2 * centre_2LD * linear_2LD + centre_2LD.square() * self._samples
        return (deviations_2LD.sum(0).clamp(min=0) / (self._batches - 1)).float()

    def state(self) -> dict[str, Tensor]:
        """Tensors that `load_state` of another accumulator continues from."""
        return {"batches": torch.tensor([self._batches, self._samples]), "sums": self._sums}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the accumulator that returned `state` was."""
        self._batches, self._samples = state["batches"].tolist()
        self._sums = state["sums"].clone()
