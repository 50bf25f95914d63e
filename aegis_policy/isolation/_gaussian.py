"""The Gaussian anchor: what the pretrained hidden states looked like, and how far a batch is from it.

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from aegis_policy.isolation._moment_accumulators import MomentAccumulator
from aegis_policy.isolation._moments import EPS, Moments
from aegis_policy.isolation._numerics import at_least_float32

REBUILD = "rebuild it from the pretrained model"


class AnchorError(ValueError):
    """An anchor that cannot protect this model; its message is one sentence, `fault: mend.`

    Attributes:
        fault: what is wrong, and where.
        mend: what to do. Who knows the command that does it raises the fault again with a mend that names it.
    """

    def __init__(self, fault: str, mend: str = REBUILD) -> None:
        super().__init__(fault, mend)
        self.fault, self.mend = fault, mend

    def __str__(self) -> str:
        return f"{self.fault}: {self.mend}."


def w2_squared(mean: Tensor, std: Tensor, mean0: Tensor, std0: Tensor) -> Tensor:
    """Squared Wasserstein-2 distance between Gaussians with diagonal covariance.

    `||mean - mean0||^2 + ||std - std0||^2` (AEGIS, arXiv 2604.16067), summed over all dimensions: arguments
    of shape (D,) give the distance of one layer, (L, D) the anchor loss of all layers.
    """
    return (mean - mean0).square().sum() + (std - std0).square().sum()


@torch.no_grad()
def w2_cotangents(
    hidden: Sequence[Tensor],
    mask_BT: Tensor,
    moments: Moments,
    mean0_LD: Tensor,
    std0_LD: Tensor,
) -> list[Tensor]:
    """Gradient of the anchor loss with respect to every layer's hidden states, in closed form.

    One layer and one hidden dimension, n valid tokens with values x_i:

        m = (1/n) sum_i x_i                 dm/dx_i = 1/n
        v = (1/n) sum_i (x_i - m)^2         dv/dx_i = 2 (x_i - m) / n      (the term through m sums to zero)
        s = sqrt(v + eps)                   ds/dx_i = (x_i - m) / (n s)

    and therefore, for L = (m - m0)^2 + (s - s0)^2,

        dL/dx_i = (2/n) [ (m - m0) + (1 - s0/s) (x_i - m) ]

    and zero for padding. n, m and s are those of the global batch, so each rank's cotangents are its own rows
    of the global gradient and parameter gradients only have to be summed over ranks.

    Args:
        hidden: L tensors (B, T, D).
        mask_BT: bool, True for a valid token.
        moments: of the global batch these hidden states are a part of.
        mean0_LD: the anchor's mean.
        std0_LD: the anchor's standard deviation.

    Returns:
        L tensors of the hidden states' shapes and dtypes.
    """
    scale = 2 / moments.tokens.clamp(min=1)
    slope_LD = (1 - std0_LD / moments.std_LD) * scale
    shift_LD = (moments.mean_LD - mean0_LD) * scale - slope_LD * moments.mean_LD
    padding_BT1 = ~mask_BT.unsqueeze(-1)
    return [
        torch.addcmul(shift_D, at_least_float32(x_BTD), slope_D)
        .masked_fill_(padding_BT1, 0.0)
        .to(x_BTD.dtype)
        for x_BTD, slope_D, shift_D in zip(hidden, slope_LD, shift_LD, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class GaussianAnchor:
    """Mean and standard deviation of every decoder layer's output hidden states in the pretrained model.

    Attributes:
        mean_LD: float32 mean over all valid tokens of all samples.
        std_LD: float32 standard deviation, not negative.
        count: number of valid tokens behind the moments.
        noise_LD: by how much the moments of one sample miss those of all, (mean - mean0)^2 + (std - std0)^2, as far as
            known; see `noise_floor`.

    Raises:
        AnchorError: shapes that differ or are not (L, D), values that are not finite, a negative deviation,
            no token.
    """

    mean_LD: Tensor
    std_LD: Tensor
    count: int
    noise_LD: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean_LD", self.mean_LD.detach().to(torch.float32, copy=True))
        object.__setattr__(self, "std_LD", self.std_LD.detach().to(torch.float32, copy=True))
        if fault := _fault(self.mean_LD, self.std_LD, self.count):
            raise AnchorError(f"The Gaussian anchor {fault}")

    @classmethod
    def from_accumulators(
        cls, accumulators: Sequence[MomentAccumulator], eps: float = EPS, noise_LD: Tensor | None = None
    ) -> Self:
        """Make the anchor of a model from one accumulator for each of its layers."""
        means, stds, counts = zip(*(each.finalize(eps) for each in accumulators), strict=True)
        return cls(torch.stack(means), torch.stack(stds), counts[0], noise_LD)

    @property
    def num_layers(self) -> int:
        """L, the number of layers described."""
        return self.mean_LD.shape[0]

    @property
    def hidden_size(self) -> int:
        """D, the width of the hidden states described."""
        return self.mean_LD.shape[1]

    def first(self, layers: int) -> Self:
        """The anchor of the first so many layers."""
        noise_LD = None if self.noise_LD is None else self.noise_LD[:layers]
        return type(self)(self.mean_LD[:layers], self.std_LD[:layers], self.count, noise_LD)

    def noise_floor(self, samples: int) -> float | None:
        """The squared distance at which a batch of so many of the anchor's own samples is expected to lie.

        The moments of a batch miss those of all samples by an error whose square falls as one over its size. A distance
        that is not well above this says little about the model, and its gradient points anywhere.

        Args:
            samples: in the batch.

        Returns:
            The distance summed over layers, or None if the anchor does not know its noise.
        """
        return None if self.noise_LD is None else float(self.noise_LD.sum()) / samples

    def check(self, num_layers: int, hidden_size: int) -> None:
        """Make sure that the anchor is that of a model of this depth and width.

        Raises:
            AnchorError: it is not.
        """
        if self.num_layers != num_layers:
            raise AnchorError(f"The anchor describes {self.num_layers} layers but the model has {num_layers}")
        if self.hidden_size != hidden_size:
            raise AnchorError(
                f"The anchor describes hidden states of size {self.hidden_size} but the model's have size "
                f"{hidden_size}"
            )


def _fault(mean: Tensor, std: Tensor, count: int) -> str | None:
    if mean.ndim != 2 or mean.shape != std.shape or mean.numel() == 0:
        shapes = f"{tuple(mean.shape)} and {tuple(std.shape)}"
        return f"has moments of shapes {shapes} instead of twice (layers, hidden size)"
    if not (mean.isfinite().all() and std.isfinite().all()):
        return "holds values that are not finite"
    if (std < 0).any():
        return "holds a negative standard deviation"
    if count < 1:
        return "was made from no token"
    return None
