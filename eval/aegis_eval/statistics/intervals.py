"""How sure a score is: intervals, and the paired comparison of two models.

Pure functions over arrays; nothing here knows models, images or files. What scipy has too (Wilson's interval, McNemar's
exact test) is written out, since scipy rounds otherwise in the last bit and results are compared to it; tests hold the
two together.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from aegis_eval.statistics.draws import draws

Interval = tuple[float, float]

_SIGN_FLIPS = 10_000
_BLOCK = 2_000_000
"""Signs held at a time."""


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a proportion (Wilson 1927); (0, 1) when nothing was observed.

    Raises:
        ValueError: more successes than trials, or a negative number.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is not a proportion")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class PairedComparison:
    """Model against reference on the same samples.

    `difference` is accuracy minus the reference's, with a bootstrap interval; `gained` and `lost` count the
    samples that one of the two answers better than the other, `p_value` is McNemar's exact test on them, or its
    counterpart for groups of dependent samples and for answers that are right in part.
    """

    difference: float
    ci: Interval
    gained: int
    lost: int
    p_value: float


def compare_paired(
    correct: Sequence[float] | NDArray[np.generic],
    reference: Sequence[float] | NDArray[np.generic],
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models sample by sample.

    Args:
        correct: (N,) whether the model is right, or how right, from 0 to 1.
        reference: (N,) the same of the reference on the same samples.
        groups: what samples have in common (their image); resampled whole, as such samples are dependent.
        resamples: number of bootstrap draws.
        confidence: of the interval.
        seed: of the resampling.

    Raises:
        ValueError: no samples, or lengths that differ.
    """
    ours = np.asarray(correct, dtype=float)
    theirs = np.asarray(reference, dtype=float)
    if ours.shape != theirs.shape or ours.size == 0:
        raise ValueError(f"a paired comparison needs the same samples: got {ours.size} and {theirs.size}")
    gained, lost = int((ours > theirs).sum()), int((theirs > ours).sum())
    changes = ours - theirs
    return PairedComparison(
        difference=float(changes.mean()),
        ci=_bootstrap_mean(changes, groups, resamples, confidence, seed),
        gained=gained,
        lost=lost,
        p_value=mcnemar_p(changes, groups, seed=seed),
    )


def mcnemar_p(
    changes: NDArray[np.float64], groups: Sequence[Hashable] | None = None, *, seed: int = 0
) -> float:
    """Two-sided p of paired changes (N,) of -1, 0 or 1 if there were none in truth.

    McNemar's exact test, or its counterpart where the samples of a group depend on each other.
    """
    return _sign_test(_by_group(changes, groups)[0], seed)


def accuracy_interval(
    correct: Sequence[float] | NDArray[np.generic],
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of an accuracy: Wilson's for independent samples, a bootstrap of whole groups for dependent ones.

    Where all are right or all are wrong there is nothing to resample, and a group counts as one sample of Wilson's.
    Answers that are right in part (from 0 to 1) are resampled in any case.
    """
    values = np.asarray(correct, dtype=float)
    count = len(values) if groups is None else len(set(groups))
    if np.isin(values, (0, 1)).all() and (count == len(values) or np.ptp(values) == 0):
        return wilson_interval(round(float(values.mean()) * count), count, confidence)
    return _bootstrap_mean(values, groups, resamples, confidence, seed)


def mean_interval(
    values: Sequence[float] | NDArray[np.float64],
    groups: Sequence[Hashable] | None = None,
    *,
    resamples: int = 5000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap percentile interval of a mean, whole groups (an episode's frames, say) being resampled."""
    return _bootstrap_mean(np.asarray(values, dtype=float), groups, resamples, confidence, seed)


def _sign_test(sums: NDArray[np.float64], seed: int) -> float:
    """Two-sided p of the groups' changes if each could as well have gone the other way.

    With one change a group this is McNemar's exact test, summed in whole numbers. Where groups change by more, which
    McNemar's does not know of, their signs are flipped at random.
    """
    changed = sums[sums != 0]
    if np.all(np.abs(changed) == 1):
        fewer = int(min((changed > 0).sum(), (changed < 0).sum()))
        tail = sum(math.comb(len(changed), k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2 ** len(changed))
    rng, as_far = np.random.default_rng(seed), 0
    block = max(1, _BLOCK // len(changed))
    for start in range(0, _SIGN_FLIPS, block):
        signs = rng.choice((-1.0, 1.0), size=(min(block, _SIGN_FLIPS - start), len(changed)))
        as_far += int((np.abs(signs @ changed) >= abs(changed.sum()) - 1e-9).sum())
    return (1 + as_far) / (1 + _SIGN_FLIPS)


def _by_group(
    values: NDArray[np.float64], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum and size of every group, in order of first appearance; without groups each value is its own."""
    labels = range(len(values)) if groups is None else groups
    index: dict[Hashable, int] = {}
    group_of = np.array([index.setdefault(label, len(index)) for label in labels])
    sums = np.bincount(group_of, weights=values, minlength=len(index)).astype(np.float64)
    return sums, np.bincount(group_of, minlength=len(index))


def _bootstrap_mean(
    values: NDArray[np.float64],
    groups: Sequence[Hashable] | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Percentile interval of the mean, whole groups being drawn with replacement."""
    sums, sizes = _by_group(values, groups)
    means = [drawn_RG @ sums / (drawn_RG @ sizes) for drawn_RG in draws(len(sums), resamples, seed)]
    low, high = np.quantile(np.concatenate(means), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)
