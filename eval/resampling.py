"""Intervals over seeds and over what each run was measured on, by a hierarchical bootstrap.

Runs of one seed share demonstrations, initial expert and order of samples, and all runs meet the same questions and the
same initial states: one draw of seeds and of scenes or episodes holds for every run, so that differences are paired.

Shapes: R resamples, K seeds, N measurements (questions, episodes), G groups of measurements that belong together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aegis_eval.metrics import Interval, wilson_interval

RESAMPLES = 4000
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
        drawing_seeds, drawing_groups = np.random.default_rng(seed).spawn(2)
        self.groups = int(group_of_N.max()) + 1
        self._seeds_RK = _weights(drawing_seeds, seeds)
        self._weights_RN = _weights(drawing_groups, self.groups)[:, group_of_N]
        if weights_N is not None:
            self._weights_RN = self._weights_RN * np.asarray(weights_N)

    def means(self, values_KN: Array) -> Array:
        """Weighted mean over measurements and seeds in every draw, (1 + R,)."""
        means_RK = self._weights_RN @ values_KN.T / self._weights_RN.sum(1, keepdims=True)
        return (means_RK * self._seeds_RK).sum(1) / self._seeds_RK.sum(1)


def estimate(draws_R: Array) -> Estimate:
    """The plain estimate, which comes first, with the percentile interval of the draws behind it."""
    low, high = np.quantile(draws_R[1:], [0.025, 0.975])
    return Estimate(float(draws_R[0]), (float(low), float(high)))


def rate_estimate(draws_R: Array, groups: int) -> Estimate:
    """`estimate` of a rate; where all are right or all are wrong, Wilson's interval, which counts each group once."""
    plain = estimate(draws_R)
    if plain.ci[0] == plain.ci[1] and plain.value in (0.0, 1.0):
        return Estimate(plain.value, wilson_interval(round(plain.value * groups), groups))
    return plain


def change_estimate(draws_R: Array, groups: int) -> Estimate:
    """`estimate` of a paired difference; where no group changed, there is nothing to resample.

    Then the interval reaches as far as the largest share of changes of which so many groups might show none by chance
    (the bound of Clopper and Pearson), either way.
    """
    plain = estimate(draws_R)
    if plain.value == 0 and plain.ci == (0.0, 0.0):
        bound = 1 - 0.025 ** (1 / groups)
        return Estimate(0.0, (-bound, bound))
    return plain


def bits(text: str) -> Array:
    """`"101"` as numbers."""
    return np.array([int(character) for character in text], dtype=float)


def _weights(rng: np.random.Generator, count: int) -> Array:
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count)), draws])
