"""Moments of a stream of batches, in float64, and the error by which those of its batches miss them.

Both can be stopped, saved and continued.

Shape suffixes: B batch, T tokens, D hidden dimension, L layers, N valid tokens.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from aegis_policy.isolation._moments import EPS, Moments


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
    """The error by which moments of small batches miss those of the whole stream, which are known only at its end.

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
