"""Leading eigenvectors of a covariance over a stream, without holding the covariance of a very wide layer.

Shape suffixes: N rows, R rows taken, D width, S sketch size, K eigenpairs.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from aegis_policy.isolation._numerics import at_least_float32, most_precise, whole_float32_products
from aegis_policy.isolation._rows import EveryRow, Rows

WHOLE_WIDTH = 4_096
"""The widest covariance that is held whole: 134 MB of float64."""
_ALL = EveryRow()
_LONG = 64.0
"""Rows with more than so many times the median's squared length are multiplied in float64."""
_TOGETHER = 256
"""Fewer rows wait for others: adding a product to the sketch costs as much as that of so many rows."""
_ROUNDING = 3e-7
"""Eigenvalues below this share of what was multiplied in float32 are rounding."""


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
    """The uncentred covariance C = sum_i w_i x_i x_i^T of a stream of rows: whole, or seen through a thin test matrix.

    Up to a width of `WHOLE_WIDTH` the sketch is C, and its eigenpairs are exact. Of a wider layer, with a test matrix O
    (D, S), it is Y = C O, and `spectrum` the randomised Nystrom approximation Y (O^T Y)^+ Y^T (Tropp, Yurtsever, Udell
    and Cevher, arXiv 1706.05736); whenever many times as many rows were seen, the approximation so far takes the place
    of C, and its leading space that of O, which is a step of the power method over the stream.

    Products are float32 and their sums float64, apart from rows much longer than the others (attention sinks): rounding
    those would hide what all others span.

    Memory on `device`: 8 D^2 bytes where the sketch is whole, else 12 D S with S = 1.25 `rank`, and 1 KiB D of rows
    that wait; as much again for a moment while rows are added.

    Attributes:
        weight: the sum of all rows' weights.

    Args:
        width: D.
        rank: how many eigenpairs will be asked for.
        seed: of the first test matrix.
        device: where the sketch lives.
    """

    def __init__(
        self, width: int, rank: int, seed: int = 0, device: torch.device | str | None = None
    ) -> None:
        if rank < 1:
            raise ValueError(f"rank={rank} must be at least 1.")
        self.rank = min(width, rank)
        self.weight = 0.0
        size = width if width <= WHOLE_WIDTH else min(width, rank + max(8, rank // 4))
        self._test_DS: Tensor | None = None
        if size < width:
            gaussian_DS = torch.randn(width, size, generator=torch.Generator().manual_seed(seed))
            self._test_DS = torch.linalg.qr(gaussian_DS).Q.to(device)
        self._sketch_DS = most_precise(torch.zeros(width, size, device=device))
        self._total = most_precise(torch.zeros((), device=device))
        self._rounded = torch.zeros_like(self._total)
        self._seen, self._renew_at = 0, 4 * size
        self._waiting: list[Tensor] = []

    @torch.no_grad()
    def update(self, x_ND: Tensor, rows: Rows = _ALL) -> None:
        """Add rows, all of them or those of a choice."""
        x_RD, weight = rows.of(x_ND.detach())
        self.weight += weight
        x_RD = at_least_float32(x_RD).to(self._sketch_DS.device)
        if sum(map(len, self._waiting)) + len(x_RD) < _TOGETHER:
            self._waiting.append(x_RD.clone())  # who gave them may write to them meanwhile
        else:
            self._waiting.append(x_RD)
            self._add_waiting()

    def state(self) -> dict[str, Tensor]:
        """What an interrupted stream continues from; for a sketch of the same width, rank and seed."""
        waiting_RD = torch.cat([self._sketch_DS.new_empty(0, len(self._sketch_DS)).float(), *self._waiting])
        state = {
            "sketch": self._sketch_DS,
            "total": self._total,
            "rounded": self._rounded,
            "waiting": waiting_RD,
        }
        state["numbers"] = torch.tensor([self.weight, self._seen, self._renew_at], dtype=torch.float64)
        return state if self._test_DS is None else state | {"test": self._test_DS}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Continue where the sketch that returned `state` was."""
        self._sketch_DS.copy_(state["sketch"])
        self._total.copy_(state["total"])
        self._rounded.copy_(state["rounded"])
        self._waiting = [state["waiting"].to(self._sketch_DS.device)]
        self.weight, seen, renew_at = state["numbers"].tolist()
        self._seen, self._renew_at = int(seen), int(renew_at)
        if self._test_DS is not None:
            self._test_DS = state["test"].to(self._sketch_DS.device)

    @torch.no_grad()
    def spectrum(self) -> Spectrum:
        """The `rank` leading eigenpairs of what was seen, float32 on the CPU; fewer where rows span less.

        Raises:
            ValueError: nothing was seen, only zeros, or values that are not finite.
        """
        self._add_waiting()
        if not self._sketch_DS.isfinite().all():
            raise ValueError(
                "The sketch has seen values that are not finite, so there is no spectrum: leave such batches out."
            )
        if not self._total > 0:
            raise ValueError(
                "The sketch has seen no row that is not zero, so there is no spectrum: run the layer on data first."
            )
        if self._test_DS is None:
            values_K, vectors_DK = leading_eigenpairs(self._sketch_DS, self.rank)
        else:
            root_DS = self._root()
            values_K, vectors_SK = leading_eigenpairs(root_DS.T @ root_DS, self.rank)
            vectors_DK = torch.linalg.qr(root_DS @ vectors_SK).Q
        least = torch.maximum(_ROUNDING * self._rounded, _rounding_of(values_K) * values_K[0])
        kept = int((values_K > least).sum())
        return Spectrum(values_K.float().cpu(), vectors_DK.float().cpu(), self._total.float().cpu()).leading(
            kept
        )

    def _add_waiting(self) -> None:
        x_RD = (
            torch.cat(self._waiting)
            if len(self._waiting) > 1
            else self._waiting[0]
            if self._waiting
            else None
        )
        self._waiting = []
        if x_RD is None or not len(x_RD):
            return
        square_R = x_RD.square().sum(1)
        is_long_R = square_R > _LONG * square_R.median()
        self._total += most_precise(square_R).sum()
        self._rounded += most_precise(square_R[~is_long_R]).sum()
        if is_long_R.any():
            self._sketch_DS += self._product(most_precise(x_RD[is_long_R]))
            x_RD = x_RD[~is_long_R]
        with whole_float32_products(x_RD.device):
            self._sketch_DS += self._product(x_RD)
        self._seen += len(square_R)
        if self._test_DS is not None and self._seen >= self._renew_at:
            self._renew()

    def _product(self, x_RD: Tensor) -> Tensor:
        return x_RD.T @ (x_RD if self._test_DS is None else x_RD @ self._test_DS.to(x_RD))

    def _root(self) -> Tensor:
        """A matrix (D, S or fewer) that times its transpose is the Nystrom approximation of what was seen."""
        assert self._test_DS is not None
        core_SS = self._test_DS.to(self._sketch_DS).T @ self._sketch_DS
        values_S, vectors_SS = leading_eigenpairs((core_SS + core_SS.T) / 2, len(core_SS))
        kept_S = values_S > _rounding_of(values_S) * values_S[0]
        return self._sketch_DS @ (vectors_SS[:, kept_S] / values_S[kept_S].sqrt())

    def _renew(self) -> None:
        """Look from now on along the leading space of what was seen; rows span less than S only where inputs do."""
        self._renew_at *= 4
        root_DS = self._root()
        if root_DS.shape == self._sketch_DS.shape:
            self._test_DS = torch.linalg.qr(root_DS).Q.float()
            self._sketch_DS = root_DS @ (root_DS.T @ self._test_DS.to(root_DS))


def leading_eigenpairs(matrix_DD: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The `rank` largest eigenvalues of a symmetric matrix, descending, with orthonormal eigenvectors as columns.

    All are computed: where a sixth of them is wanted, iterating for those alone costs as much.
    """
    on = "cpu" if matrix_DD.device.type == "mps" else matrix_DD.device  # MPS has no eigendecomposition
    values_D, vectors_DD = torch.linalg.eigh(matrix_DD.to(on))
    return values_D.flip(0)[:rank].to(matrix_DD), vectors_DD.flip(1)[:, :rank].to(matrix_DD)


def _rounding_of(values: Tensor) -> float:
    """The share of the largest eigenvalue that rounding of the sketch itself comes to."""
    return 1e3 * torch.finfo(values.dtype).eps
