"""Draws with replacement, as counts: how often each thing comes in each resample of a bootstrap.

Drawing takes longer than what is computed from it, and much is computed from the same draws (every protection, every
figure of a table), so small ones are kept. Shapes: R resamples, C things to draw from.
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.integer]

_BLOCK = 2_000_000
"""Counts drawn at a time."""
_KEPT = 5_000_000
"""Draws of at most as many counts are kept, at two bytes each; 32 of them."""


def draws(things: int, resamples: int, seed: int, stream: tuple[int, ...] = ()) -> Iterator[Counts]:
    """Yield blocks of rows (R, C) that together are `resamples` rows, each of which sums to `things`.

    Args:
        things: how many there are, each as likely as the other.
        resamples: how many times as many are drawn.
        seed: of the drawing; the same arguments always give the same draws.
        stream: which of the independent streams that the seed spawns, (0,), (1,) and so on; by default the seed's own.
    """
    few = things * resamples <= _KEPT
    yield from (_kept if few else _drawn)(things, resamples, seed, stream)


@lru_cache(maxsize=32)
def _kept(things: int, resamples: int, seed: int, stream: tuple[int, ...]) -> tuple[Counts, ...]:
    fits = np.min_scalar_type(things)
    blocks = tuple(block_RC.astype(fits) for block_RC in _drawn(things, resamples, seed, stream))
    for block_RC in blocks:
        block_RC.setflags(write=False)
    return blocks


def _drawn(things: int, resamples: int, seed: int, stream: tuple[int, ...]) -> Iterator[Counts]:
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))
    rows = max(1, _BLOCK // things)
    for start in range(0, resamples, rows):
        yield rng.multinomial(things, np.full(things, 1 / things), size=min(rows, resamples - start))
