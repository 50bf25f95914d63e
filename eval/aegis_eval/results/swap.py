"""Whether the arm listens, as `aegis-swap` counted it: the same scene twice, with two objects named in turn.

A policy that ignores language goes to the same object both times.
"""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from aegis_eval.statistics.intervals import Interval, wilson_interval
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json


@dataclass(frozen=True)
class SwapProbe:
    """Outcome over `pairs` scenes, each run with two targets.

    `followed` of the `2 * pairs` rollouts ended nearest to the object that was named; in `changed` pairs the
    swap changed which object that was. A policy that looks at the scene alone follows about half the time at most;
    it changes objects only as far as its noise does, which the two rollouts of a pair do not share. Intervals are
    Wilson's.
    """

    task: str
    split: str
    pairs: int
    followed: int
    changed: int

    def __post_init__(self) -> None:
        counts = (self.pairs, self.followed, self.changed)
        if not all(isinstance(count, int) for count in counts) or not (
            0 <= self.followed <= 2 * self.pairs and 0 <= self.changed <= self.pairs and self.pairs
        ):
            raise ValueError(f"of {self.pairs} pairs, {self.followed} followed and {self.changed} changed")

    @property
    def followed_rate(self) -> float:
        return self.followed / (2 * self.pairs)

    @property
    def followed_ci(self) -> Interval:
        return wilson_interval(self.followed, 2 * self.pairs)

    @property
    def changed_ci(self) -> Interval:
        return wilson_interval(self.changed, self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able counts, rate and intervals."""
        return {
            **asdict(self),
            "followed_rate": self.followed_rate,
            "followed_ci": self.followed_ci,
            "changed_ci": self.changed_ci,
        }


def read_swaps(file: Path | str) -> tuple[SwapProbe, ...]:
    """The probes in an output file of `aegis-swap`, one a task.

    Raises:
        AegisError: it is not there or holds something else.
    """
    try:
        return tuple(
            SwapProbe(**{each.name: probe[each.name] for each in fields(SwapProbe)})
            for probe in read_json(file)["tasks"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AegisError(
            f"{file} is not what aegis-swap writes ({type(error).__name__}: {one_line(error)}): name its --output."
        ) from error
