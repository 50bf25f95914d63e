"""Intervals over seeds and over what each run was measured on, by a hierarchical bootstrap.

Runs of one seed share demonstrations, initial expert and order of samples, and all runs meet the same questions and the
same initial states: one draw of seeds and of scenes or episodes holds for every run, so that differences are paired.

Shapes: R resamples, K seeds, N measurements (questions, episodes), G groups of measurements that belong together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_eval.statistics.draws import draws
from aegis_eval.statistics.intervals import Interval, wilson_interval

RESAMPLES = 4000
_SEEDS, _GROUPS = 0, 1
"""Streams of what is drawn."""
_ENOUGH = 10
"""Groups that changed, for a bootstrap to know of all that may happen."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    ci: Interval


class Resampling:
    """Means of measurements over `RESAMPLES` draws, after one of everything once, which is the plain estimate.

    Args:
        seeds: how many runs each variant has.
        groups_N: which measurements are drawn together (the questions of a scene); by default each for itself.
        count: of measurements, where there are no groups.
        weights_N: how much each counts, by default all the same.
        seed: of the drawing; objects of the same seed draw the same seeds of training.
    """

    def __init__(
        self,
        seeds: int,
        *,
        groups_N: Sequence[int] | None = None,
        count: int = 0,
        weights_N: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        _, group_of_N = np.unique(range(count) if groups_N is None else groups_N, return_inverse=True)
        self.groups = int(group_of_N.max()) + 1
        self._seeds_RK = _weights(seeds, seed, _SEEDS)
        self._weights_RN = _weights(self.groups, seed, _GROUPS)[:, group_of_N]
        if weights_N is not None:
            self._weights_RN = self._weights_RN * np.asarray(weights_N)
        self._total_R1 = self._weights_RN.sum(1, keepdims=True)

    def means(self, values_KN: Array) -> Array:
        """Weighted mean over measurements and seeds in every draw, (1 + R,)."""
        means_RK = self._weights_RN @ values_KN.T / self._total_R1
        return (means_RK * self._seeds_RK).sum(1) / self._seeds_RK.sum(1)


def estimate(draws_R: Array, level: float = 0.95) -> Estimate:
    """The plain estimate, which comes first, with the percentile interval of the draws behind it."""
    low, high = np.quantile(draws_R[1:], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(draws_R[0]), (float(low), float(high)))


def rate_estimate(draws_R: Array, groups: int) -> Estimate:
    """`estimate` of a rate; where all are right or all are wrong, Wilson's interval, which counts each group once."""
    plain = estimate(draws_R)
    if plain.ci[0] == plain.ci[1] and plain.value in (0.0, 1.0):
        return Estimate(plain.value, wilson_interval(round(plain.value * groups), groups))
    return plain


def change_estimate(
    draws_R: Array, changes_KN: Array, groups_N: Sequence[int] | None = None, *, level: float = 0.95
) -> Estimate:
    """`estimate` of the mean of paired changes of -1, 0 or 1, whose interval also knows of changes that were not seen.

    A bootstrap resamples only what happened: nothing lost gives no width, one answer lost hardly any. So where fewer
    than ten groups changed, the interval reaches at least as far as Clopper and Pearson's bounds of the shares of
    groups that lost and that gained, put together as bounds of a difference are (Zou and Donner 2008). How much of a
    group changes is the mean of those that did and of one that changed as a whole.

    Args:
        draws_R: means of these changes.
        changes_KN: of every seed and measurement.
        groups_N: which measurements belong together, by default each for itself.
        level: how surely the interval holds the mean.
    """
    plain, count = estimate(draws_R, level), changes_KN.shape[1]
    _, group_of_N = np.unique(range(count) if groups_N is None else groups_N, return_inverse=True)
    changes_G: Array = np.bincount(group_of_N, weights=changes_KN.mean(0)).astype(float)
    if np.count_nonzero(changes_G) >= _ENOUGH:
        return plain
    gain, least_gain, most_gain = _share(changes_G[changes_G > 0], len(changes_G), count, level)
    loss, least_loss, most_loss = _share(-changes_G[changes_G < 0], len(changes_G), count, level)
    down = math.hypot(gain - least_gain, most_loss - loss)
    up = math.hypot(most_gain - gain, loss - least_loss)
    low, high = plain.ci
    return Estimate(plain.value, (min(low, plain.value - down), max(high, plain.value + up)))


def _share(sizes: Array, groups: int, count: int, level: float) -> tuple[float, float, float]:
    """What the groups that changed add to the mean of `count` measurements, at least, and at most."""
    from scipy.stats import binomtest  # more to import than all the rest here, and few results need it

    changed = binomtest(len(sizes), groups).proportion_ci(level, method="exact")
    seen = float(sizes.sum())
    typical = (seen + count / groups) / (len(sizes) + 1)
    least = changed.low * groups * seen / len(sizes) if len(sizes) else 0.0
    return seen / count, least / count, changed.high * groups * typical / count


def bits(text: str) -> Array:
    """`"101"` as numbers."""
    return np.array([int(character) for character in text], dtype=float)


def _weights(things: int, seed: int, stream: int) -> Array:
    """Once everything as it is, then how often each comes in every resample, (1 + R, things)."""
    return np.concatenate([np.ones((1, things)), *draws(things, RESAMPLES, seed, (stream,))])
