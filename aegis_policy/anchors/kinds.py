"""The kinds of statistics that an anchor may hold, and what gathers each of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from aegis_policy.anchors.factors import InputFactors, KroneckerFactors
from aegis_policy.anchors.fisher import Fisher
from aegis_policy.anchors.moments import GaussianMoments
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample


class Gatherer(Protocol):
    """One kind of statistics of a VLM, fed batch by batch.

    Attributes:
        needs_answers: whether it reads the model's own answers behind the questions.
    """

    needs_answers: bool

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        """Take in the batch of this number in the stream; `answers` is empty if no gatherer needs them."""

    def frames(self, inputs: dict[str, Tensor]) -> None:
        """Take in a batch of robot frames, prepared for the model."""

    def gathered(self) -> dict[str, Any]:
        """The fields of an `Anchor` that hold the statistics.

        Raises:
            ValueError: there are none, or they are not finite.
        """

    def state(self) -> dict[str, Tensor]:
        """What an interrupted pass continues from."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the gatherer that returned `state` was."""


@dataclass(frozen=True)
class Kind:
    """What `--kinds` names.

    Attributes:
        part: name of its share of a builder's state. Kinds with the same one are gathered by the last of them.
        make: the gatherer for a VLM, a rank and a seed.
        asks: whether it is about answers, so that robot frames alone are not enough.
        brings: further kinds that an anchor with this one can serve.
    """

    part: str
    make: Callable[[VLMBackbone, int, int], Gatherer]
    asks: bool = False
    brings: tuple[str, ...] = ()


KINDS = {
    "gaussian": Kind("moments", lambda vlm, rank, seed: GaussianMoments(vlm)),
    "subspace": Kind("factors", InputFactors),
    "kronecker": Kind("factors", KroneckerFactors, asks=True, brings=("subspace",)),
    "fisher": Kind("fisher", lambda vlm, rank, seed: Fisher(vlm, seed), asks=True),
}
DEFAULT_KINDS = ("gaussian", "kronecker")


def gatherers(vlm: VLMBackbone, kinds: Iterable[str], rank: int, seed: int) -> dict[str, Gatherer]:
    """What gathers these kinds, by the name of its part."""
    wanted = set(kinds)
    by_part = {kind.part: kind for name, kind in KINDS.items() if name in wanted}
    return {part: kind.make(vlm, rank, seed) for part, kind in by_part.items()}
