"""Leading eigenvectors of a covariance over a stream, without holding the covariance of a wide layer.

Shape suffixes: N rows, D width, S sketch size, K eigenpairs.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from aegis_policy.isolation._numerics import most_precise

_SMALLEST = 1e-13  # eigenvalues below this share of the largest are rounding: products are float64


class Spectrum(NamedTuple):
    """The leading eigenpairs of a positive semi-definite matrix (D, D).

    Attributes:
        values_K: eigenvalues, descending, not negative.
        vectors_DK: orthonormal eigenvectors, as columns; float16 where they come from a file.
        total: the trace, a scalar: the sum of all D eigenvalues, kept or not.
    """

    values_K: Tensor
    vectors_DK: Tensor
    total: Tensor

    def leading(self, rank: int) -> Self:
        """The first `rank` eigenpairs of these."""
        return self._replace(values_K=self.values_K[:rank], vectors_DK=self.vectors_DK[:, :rank])

    def scaled(self, factor: float) -> Self:
        """The eigenpairs of `factor` times the matrix."""
        return self._replace(values_K=self.values_K * factor, total=self.total * factor)


class CovarianceSketch:
    """The uncentred covariance `sum_i w_i x_i x_i^T` of a stream of rows, seen through a thin test matrix.

    With an orthonormal test matrix O (D, S) the sketch is Y = (sum_i w_i x_i x_i^T) O. It is a sum over rows, so
    neither their order nor their batches matter, and sketches of parts of a stream add up. `spectrum` is the
    randomised Nystrom approximation Y (O^T Y)^+ Y^T (Tropp, Yurtsever, Udell and Cevher, arXiv 1706.05736). Where
    the width is at most twice the rank, O is the identity and Y the covariance itself. Products are float64: in float32
    the rounding of a row a thousand times longer than the others (an attention sink) would hide what all of them span.

    Memory: one matrix (D, S) of float64 and one of float32, S = min(D, 2 `rank`).

    Attributes:
        weight: the sum of all rows' weights, a scalar.

    Args:
        width: D.
        rank: how many eigenpairs will be asked for.
        seed: of the test matrix.
    """

    def __init__(self, width: int, rank: int, seed: int = 0) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1.")
        size = min(width, 2 * rank)
        self.rank = min(width, rank)
        if size == width:
            self._test_DS = torch.eye(width)
        else:
            gaussian = torch.randn(width, size, generator=torch.Generator().manual_seed(seed))
            self._test_DS = torch.linalg.qr(gaussian).Q
        self._sketch_DS = torch.zeros(width, size, dtype=torch.float64)
        self._total = torch.zeros((), dtype=torch.float64)
        self.weight = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def update(self, x_ND: Tensor, weights_N: Tensor | None = None) -> None:
        """Add rows, each with its weight (default 1); what rows of weight 0 hold (it may be NaN) never spreads."""
        x_ND = most_precise(x_ND.detach())
        if weights_N is None:
            self.weight += len(x_ND)
        else:
            weights_N1 = weights_N.to(x_ND).unsqueeze(1)
            x_ND = torch.where(weights_N1 > 0, x_ND * weights_N1.sqrt(), 0.0)
            self.weight += weights_N1.sum().to(self.weight)
        if self._test_DS.device != x_ND.device:
            self._test_DS = self._test_DS.to(x_ND.device)
        self._sketch_DS += (x_ND.T @ (x_ND @ self._test_DS.to(x_ND))).to(self._sketch_DS)
        self._total += x_ND.square().sum().to(self._total)

    def state(self) -> dict[str, Tensor]:
        """What an interrupted stream continues from; for a sketch of the same width, rank and seed."""
        return {"sketch": self._sketch_DS, "total": self._total, "weight": self.weight}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where the sketch that returned `state` was."""
        self._sketch_DS.copy_(state["sketch"])
        self._total.copy_(state["total"])
        self.weight.copy_(state["weight"])

    @torch.no_grad()
    def spectrum(self) -> Spectrum:
        """The `rank` leading eigenpairs of what was seen, float32 on the CPU; fewer where rows span less.

        Raises:
            ValueError: nothing was seen, only zeros, or values that are not finite.
        """
        if not self._sketch_DS.isfinite().all():
            raise ValueError(
                "The sketch has seen values that are not finite, so there is no spectrum: leave such batches out."
            )
        if not self._total > 0:
            raise ValueError(
                "The sketch has seen no row that is not zero, so there is no spectrum: run the layer on data first."
            )
        test_DS = self._test_DS.cpu().double()
        core_SS = test_DS.T @ self._sketch_DS
        values_S, vectors_SS = torch.linalg.eigh((core_SS + core_SS.T) / 2)
        kept_S = values_S > _SMALLEST * values_S[-1]
        root_DK = self._sketch_DS @ (vectors_SS[:, kept_S] / values_S[kept_S].sqrt())
        vectors_DK, singular_K, _ = torch.linalg.svd(root_DK, full_matrices=False)
        spectrum = Spectrum(singular_K.square().float(), vectors_DK.float(), self._total.float())
        return spectrum.leading(self.rank)
