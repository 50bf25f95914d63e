"""Which rows of a batch a sketch takes, and how much each of them counts.

Worked out once a batch, for all layers that see its tokens; a row that is taken in place of others counts for them too.

Shape suffixes: B batch, T tokens, N rows, R rows taken, D width.
"""

from math import sqrt
from typing import NamedTuple, Protocol, Self

from torch import Tensor

from aegis_policy.isolation._numerics import at_least_float32


class Rows(Protocol):
    """A choice of rows."""

    def of(self, x_ND: Tensor) -> tuple[Tensor, float]:
        """The rows taken (R, D), each times the root of what it counts, and what they count together."""


class EveryRow(NamedTuple):
    """One row in `step`, from row `first` on, each counting as `step` rows."""

    step: int = 1
    first: int = 0

    def of(self, x_ND: Tensor) -> tuple[Tensor, float]:
        x_RD = x_ND[self.first :: self.step]
        return (x_RD if self.step == 1 else x_RD * sqrt(self.step)), float(self.step * len(x_RD))


class WeightedRows(NamedTuple):
    """The rows of positive weight; what others hold (it may be NaN) never spreads."""

    index_R: Tensor
    root_R1: Tensor
    weight: float

    @classmethod
    def by(cls, weights_BT: Tensor) -> Self:
        """Take as much of each row as its weight says, 0 for padding."""
        index_R = weights_BT.flatten().nonzero().flatten()
        weights_R = at_least_float32(weights_BT.flatten()[index_R])
        return cls(index_R, weights_R.sqrt().unsqueeze(1), float(weights_R.sum()))

    def of(self, x_ND: Tensor) -> tuple[Tensor, float]:
        x_RD = x_ND[self.index_R.to(x_ND.device)]
        return x_RD * self.root_R1.to(x_RD), self.weight


def thinned(weights_BT: Tensor, which_BT: Tensor, every: EveryRow) -> Tensor:
    """The weights of a batch's tokens of which `every` takes some of those in `which_BT`, and all others stay."""
    chosen_R = (which_BT & (weights_BT > 0)).flatten().nonzero().flatten()
    weights_BT = weights_BT.masked_fill(which_BT, 0)
    weights_BT.flatten()[chosen_R[every.first :: every.step]] = every.step
    return weights_BT
