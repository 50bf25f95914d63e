"""Precision: in which dtype sums are taken, and how exact matrix products are."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def whole_float32_products(device: torch.device) -> Iterator[None]:
    """Multiply in whole float32 meanwhile: TF32, which trainers turn on, would leave a thousandth of a block in, and
    autocast a hundredth."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
