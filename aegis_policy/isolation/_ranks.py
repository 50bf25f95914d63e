"""Sums over the ranks of a data-parallel run; a single process is its own sum."""

import torch.distributed as dist
from torch import Tensor


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
