"""How much of what learns an anchor's blocks hold: said when a training starts, on its card, and by `aegis-doctor`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

from torch import Tensor

from aegis_policy.isolation import LinearFactors, direction_count
from aegis_policy.support.errors import some
from aegis_policy.support.finding import Finding

_LITTLE = 1 / 3
"""The share of the answers' gradient below which the median layer's blocks are too weak. On the embedded VLM,
the only one where both are known, blocks with 31, 41 and 47 % of it kept 97.2, 99.0 and 99.3 % of the answers
(docs/ablation.md)."""


@dataclass(frozen=True)
class Coverage:
    """What an anchor's blocks hold of every layer that learns.

    Attributes:
        kind: of the anchor.
        directions: by layer, along how many input directions it may not move.
        widths: by layer, the number of its inputs.
        gradient: by layer, the share of the squared norm of the answers' gradient that lies in the blocks; None where
            the anchor does not know it.
        short: layers of which the anchor keeps fewer directions than are asked for.
    """

    kind: str
    directions: Mapping[str, int]
    widths: Mapping[str, int]
    gradient: Mapping[str, float] | None
    short: Sequence[str]

    @classmethod
    def of(
        cls, kind: str, blocks: Mapping[str, Tensor], factors: Mapping[str, LinearFactors], share: float
    ) -> Self:
        """What blocks hold of the layers whose factors these are.

        Args:
            kind: of the anchor.
            blocks: of every layer that learns, see `select_blocks`.
            factors: of the same layers.
            share: of their input directions that was asked for.
        """
        directions = {name: block_DK.shape[1] for name, block_DK in blocks.items()}
        widths = {name: len(block_DK) for name, block_DK in blocks.items()}
        short = [name for name in blocks if directions[name] < direction_count(widths[name], share)]
        return cls(kind, directions, widths, _gradient(factors, directions), short)

    def __str__(self) -> str:
        shares = [count / self.widths[name] for name, count in self.directions.items()]
        told = (
            f"{_three(self.directions.values(), '{:.0f}')} of a layer's input directions, {_three(shares, '{:.1%}')} "
            f"of its inputs (least, median and most of {len(shares)} layers)"
        )
        if self.gradient is None:
            return told
        return f"{told}, which hold {_three(self.gradient.values(), '{:.1%}')} of the answers' gradient"

    def findings(self) -> Iterator[Finding]:
        """What is to be said of it: how much it is, and a warning where that is little or less than asked for."""
        told = f"The {self.kind} anchor protects {self}"
        if self.gradient is None:
            yield Finding(
                "ok",
                f"{told}; how much of the answers' gradient they hold is not known (aegis-anchor finds it with "
                "questions, --policy.vqa_probe_freq in training)",
            )
        elif median(self.gradient.values()) < _LITTLE:
            yield Finding(
                "warning",
                f"{told}; a median below {_LITTLE:.0%} is little: most of a step against the answers passes",
                "make the anchor with a higher --share of aegis-anchor, and raise --policy.anchor_share to it",
            )
        else:
            yield Finding("ok", told)
        if self.short:
            yield Finding(
                "warning",
                f"The {self.kind} anchor keeps fewer directions of {some(self.short)} than --policy.anchor_share asks "
                "for, and protects those that it has",
                "make it with a higher --share of aegis-anchor, or of more questions, or lower --policy.anchor_share",
            )


def _gradient(factors: Mapping[str, LinearFactors], directions: Mapping[str, int]) -> dict[str, float] | None:
    """The share of the answers' gradient along the leading directions, if it is known of every layer."""
    held = {}
    for name, layer in factors.items():
        if layer.gradient_K is None:
            return None
        held[name] = float(layer.gradient_K[: directions[name]].sum())
    return held


def _three(values: Collection[float], form: str) -> str:
    """The least, the median and the greatest of some values."""
    return "{}, {} and {}".format(*map(form.format, (min(values), median(values), max(values))))
