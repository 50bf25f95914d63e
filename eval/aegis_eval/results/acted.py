"""What `aegis-act` counted: objects that are named by what the VLM knows, gone to and said in words.

Every scene has two questions, with another object meant; an arm that ignores them is right in half at most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from aegis_eval.statistics.resampling import Estimate, Resampling, rate_estimate
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json

ABOUT = (
    "Objects named by what the VLM knows, every scene twice with another one meant: acted is how often the arm ends at "
    "it, answered how often the policy's own VLM says it in words. Arms that ignore their instruction are beside it."
)


@dataclass(frozen=True)
class ActedKind:
    """One kind of question; two entries a scene, one after the other, in every list.

    Attributes:
        kind: of `aegis_eval.questions.acted.KINDS`.
        ended: the object that the arm ended nearest to.
        acted: whether it was one that was meant.
        answered: whether the VLM's words were right.
        ignoring: arm that ignores its instruction -> how likely it goes to an object that was meant.
    """

    kind: str
    ended: Sequence[str]
    acted: Sequence[bool]
    answered: Sequence[bool]
    ignoring: Mapping[str, Sequence[float]]

    def __post_init__(self) -> None:
        lengths = {len(each) for each in (self.ended, self.acted, self.answered, *self.ignoring.values())}
        if len(lengths) != 1 or (length := lengths.pop()) == 0 or length % 2:
            raise ValueError(f"{self.kind} has not two entries a scene in every list")

    def estimate(self, values: Sequence[float]) -> Estimate:
        """Mean of one of the lists, with an interval over scenes."""
        scenes = [number // 2 for number in range(len(values))]
        means = Resampling(1, groups_N=scenes).means(np.asarray(values, float)[None])
        return rate_estimate(means, len(values) // 2)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able lists, and their means with intervals."""
        named = {"acted": self.acted, "answered": self.answered, **self.ignoring}
        estimates = {name: asdict(self.estimate(values)) for name, values in named.items()}
        return {**asdict(self), "estimates": estimates}


def read_acted(file: Path | str) -> tuple[ActedKind, ...]:
    """The kinds in an output file of `aegis-act`.

    Raises:
        AegisError: it is not there or holds something else.
    """
    try:
        return tuple(
            ActedKind(**{each.name: kind[each.name] for each in fields(ActedKind)})
            for kind in read_json(file)["kinds"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AegisError(
            f"{file} is not what aegis-act writes ({type(error).__name__}: {one_line(error)}): name its --output."
        ) from error
