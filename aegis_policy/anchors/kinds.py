"""The kinds of statistics that an anchor may hold, and what gathers each of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aegis_policy.anchors.factors import InputFactors, KroneckerFactors
from aegis_policy.anchors.fisher import Fisher
from aegis_policy.anchors.gatherer import Gatherer
from aegis_policy.anchors.moments import GaussianMoments
from aegis_policy.vlm.backbone import VLMBackbone


@dataclass(frozen=True)
class Kind:
    """What `--kinds` names.

    Attributes:
        part: name of its share of a builder's state. Kinds with the same one are gathered by the last of them.
        make: the gatherer for a VLM, a share of directions and a seed.
        asks: whether it is about answers, so that robot frames and running text alone are not enough.
        looks: whether all its questions must be about pictures.
        brings: further kinds that an anchor with this one can serve.
    """

    part: str
    make: Callable[[VLMBackbone, float, int], Gatherer]
    asks: bool = False
    looks: bool = False
    brings: tuple[str, ...] = ()


KINDS = {
    "gaussian": Kind("moments", lambda vlm, share, seed: GaussianMoments(vlm)),
    "subspace": Kind("factors", InputFactors),
    "kronecker": Kind("factors", KroneckerFactors, asks=True, looks=True, brings=("subspace",)),
    "fisher": Kind("fisher", lambda vlm, share, seed: Fisher(vlm, seed), asks=True),
}
DEFAULT_KINDS = ("subspace",)
"""What the default protection needs."""


def gatherers(vlm: VLMBackbone, kinds: Iterable[str], share: float, seed: int) -> dict[str, Gatherer]:
    """What gathers these kinds, by the name of its part."""
    wanted = set(kinds)
    by_part = {kind.part: kind for name, kind in KINDS.items() if name in wanted}
    return {part: kind.make(vlm, share, seed) for part, kind in by_part.items()}
