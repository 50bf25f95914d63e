"""The distance of a batch to its Gaussian anchors, and the distance's gradient in the hidden states.

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from aegis_policy.isolation._gaussian import GaussianAnchor, w2_cotangents, w2_squared
from aegis_policy.isolation._moment_average import MomentAverage
from aegis_policy.isolation._moments import EPS, global_moments
from aegis_policy.isolation._numerics import at_least_float32


class Distance(NamedTuple):
    """A batch's distance to all anchors together.

    Attributes:
        value: the anchor loss of the global batch, a scalar.
        cotangents: its gradient in each layer's hidden states, L tensors (B, T, D).
        tokens: how many the anchor with the fewest has in this batch, a scalar.
    """

    value: Tensor
    cotangents: list[Tensor]
    tokens: Tensor


class AnchorDistance:
    """The squared W2 distance to one anchor a group of tokens, summed over layers and groups.

    Args:
        anchors: of the same layers and width.
        whiten: divide each dimension's part by the anchor's variance there.
        momentum: of the moving average that takes the place of a batch's moments.
        eps: inside the square root of the batch's standard deviation.
    """

    def __init__(
        self, anchors: Sequence[GaussianAnchor], *, whiten: bool, momentum: float, eps: float = EPS
    ) -> None:
        self.anchors = list(anchors)
        self.whiten = whiten
        self.momentum = momentum
        self.eps = eps
        self._moments0 = [(each.mean_LD, each.std_LD) for each in self.anchors]
        self._averages = [MomentAverage(momentum, each.mean_LD) for each in self.anchors]

    def of_batch(self, hidden: Sequence[Tensor], masks: Sequence[Tensor]) -> Distance:
        """The distance of a batch, whose moments enter the moving averages.

        Args:
            hidden: L tensors (B, T, D).
            masks: for each anchor a bool mask (B, T), True for a valid token that it describes.
        """
        values, cotangents, tokens = [], [], []
        for index, mask_BT in enumerate(masks):
            mean0_LD, std0_LD = self._moments0_like(index, hidden[0])
            scale_LD = 1 / self._divisor(std0_LD) if self.whiten else torch.ones_like(std0_LD)
            batch = global_moments(hidden, mask_BT, self.eps)
            average = self._averages[index].update(batch)
            # Away from an anchor moved by the same gap, the batch has the gradient that the average would have.
            lag_mean_LD, lag_std_LD = batch.mean_LD - average.mean_LD, batch.std_LD - average.std_LD
            values.append(
                w2_squared(
                    *(scale_LD * x_LD for x_LD in (average.mean_LD, average.std_LD, mean0_LD, std0_LD))
                )
            )
            cotangents.append(
                w2_cotangents(
                    hidden,
                    mask_BT,
                    batch,
                    mean0_LD + lag_mean_LD,
                    std0_LD + lag_std_LD,
                    scale_LD.square() if self.whiten else None,
                )
            )
            tokens.append(batch.tokens)
        summed = [
            torch.stack(layer).sum(0) if len(layer) > 1 else layer[0]
            for layer in zip(*cotangents, strict=True)
        ]
        return Distance(torch.stack(values).sum(), summed, torch.stack(tokens).min())

    def noise_floor(self, samples: int) -> float | None:
        """The distance expected of a batch of so many of the anchors' own samples, None if an anchor does not know.

        A moving average is as quiet as a batch larger by (1 + momentum) / (1 - momentum).
        """
        floors = [
            each.noise_floor(samples, 1 / self._divisor(each.std_LD).square() if self.whiten else None)
            for each in self.anchors
        ]
        if any(floor is None for floor in floors):
            return None
        return sum(floor or 0.0 for floor in floors) * (1 - self.momentum) / (1 + self.momentum)

    def averages(self) -> dict[str, Tensor]:
        """The moving averages by name, for a checkpoint; they are updated in place."""
        return {
            f"{index}.{name}": tensor
            for index, average in enumerate(self._averages)
            for name, tensor in average.state().items()
        }

    def _divisor(self, std0_LD: Tensor) -> Tensor:
        """What whitening divides by: a dimension that never varied has no deviation."""
        return std0_LD.clamp(min=self.eps**0.5)

    def _moments0_like(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """An anchor's mean and deviation on the device of `x`, in float32 or better."""
        mean0_LD, std0_LD = self._moments0[index]
        if mean0_LD.device != x.device or mean0_LD.dtype != at_least_float32(x).dtype:
            dtype = torch.promote_types(x.dtype, torch.float32)
            self._moments0[index] = mean0_LD.to(x.device, dtype), std0_LD.to(x.device, dtype)
        return self._moments0[index]
