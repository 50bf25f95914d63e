"""An exponential moving average of batches' moments, to stand in for those of one small batch.

Shape suffixes: D hidden dimension, L layers.
"""

import torch
from torch import Tensor

from aegis_policy.isolation._moments import Moments


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
