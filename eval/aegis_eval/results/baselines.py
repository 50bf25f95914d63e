"""What arms that ignore their instruction make of the scenes in which policies are rolled out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aegis_eval.statistics.intervals import wilson_interval
from aegis_eval.statistics.resampling import Array, Estimate, Resampling, rate_estimate
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json

Shares = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> task -> how likely it succeeds in each scene."""
EXPERT = "expert"
"""The one arm that hears its instruction."""
ABOUT = (
    "Arms that ignore their instruction, in the same scenes: nearest object goes to the one nearest the table's "
    "centre, any object to each with equal chances."
)
UNKNOWN = "What an arm that ignores its instruction reaches is not known here"
ABOUT_EXPERT = "expert is the scripted arm, which hears it."


@dataclass(frozen=True)
class Baseline:
    """An arm that ignores its instruction.

    Attributes:
        name: of the arm.
        success: split -> task -> how likely it succeeds in each initial state, in the order of the policies' rollouts.
        named: task -> how likely it goes to the named object in each rollout of `aegis-swap`.
    """

    name: str
    success: Mapping[str, Mapping[str, Sequence[float]]]
    named: Mapping[str, Sequence[float]]

    def shares(self, split: str) -> Array:
        """Of the initial states of all tasks, one task after the other."""
        return np.concatenate([np.asarray(shares, float) for shares in self.success[split].values()])


def share_estimate(shares_N: Iterable[float]) -> Estimate:
    """Mean of shares; Wilson's interval where each is 0 or 1, else that of a bootstrap over them."""
    values_N = np.asarray(list(shares_N), float)
    if np.isin(values_N, (0.0, 1.0)).all():
        return Estimate(float(values_N.mean()), wilson_interval(int(values_N.sum()), len(values_N)))
    return rate_estimate(Resampling(1, count=len(values_N)).means(values_N[None]), len(values_N))


def read_baselines(file: Path | str) -> Shares:
    """The arms in an output file of `aegis-baseline`.

    Raises:
        AegisError: it holds something else.
    """
    try:
        arms = read_json(file)["arms"]
        return {
            name: {task: list(map(_share, shares)) for task, shares in tasks.items()}
            for name, tasks in arms.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AegisError(
            f"{file} is not what aegis-baseline writes ({type(error).__name__}: {one_line(error)}): name its --output."
        ) from error


def _share(value: float) -> float:
    if not 0.0 <= value <= 1.0:  # nor is NaN
        raise ValueError(f"{value} is no share")
    return float(value)
