"""Precision: in which dtype and unit sums are taken, and how exact matrix products are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is more precise."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def most_precise(x: Tensor) -> Tensor:
    """Return `x` in float64 where its device has that, else in float32."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def unit_of(xs: Sequence[Tensor]) -> Tensor:
    """A power of two about as large as the largest value: squares of float32 in this unit neither overflow nor vanish.

    Returns:
        A scalar of float32 or better, 1 if all values are zero or one is not finite.
    """
    largest = torch.stack([at_least_float32(x.abs().amax()) for x in xs if x.numel()]).max()
    exponent = largest.log2().floor().clamp(-126, 126)
    return torch.where(largest.isfinite() & (largest > 0), exponent.exp2(), 1.0)


def squared_norm(x: Tensor) -> Tensor:
    """The sum of squares, a scalar in float64 where the device has that."""
    unit = unit_of([x])
    return most_precise((at_least_float32(x) / unit).square().sum()) * most_precise(unit).square()


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
