"""The runs of one protection as arrays, a row a seed.

Shapes: K seeds, N questions, E episodes.
"""

from collections.abc import Sequence

import numpy as np

from aegis_eval.results.compared import ComparedRun
from aegis_eval.statistics.resampling import Array, bits


def outcomes(group: Sequence[ComparedRun], split: str, task: str) -> Array:
    """Which episodes succeeded, (K, E)."""
    return np.stack([bits(run.outcomes(split, task)) for run in group])


def correct(group: Sequence[ComparedRun], benchmark: str) -> Array:
    """Which questions were answered correctly, (K, N)."""
    return np.stack([bits(run.answers[benchmark]) for run in group])


def trained(group: Sequence[ComparedRun]) -> frozenset[str]:
    """Which trainings these runs are."""
    return frozenset(run.folder for run in group)
