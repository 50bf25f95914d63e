"""The kinds of statistics that an anchor may hold, and what gathers each of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aegis_policy.anchors.factors import InputFactors
from aegis_policy.anchors.fisher import Fisher
from aegis_policy.anchors.gatherer import Gatherer
from aegis_policy.anchors.moments import GaussianMoments
from aegis_policy.vlm.backbone import VLMBackbone


@dataclass(frozen=True)
class Kind:
    """What `--kinds` names.

    Attributes:
        make: the gatherer for a VLM, a share of directions and a seed.
        asks: whether it is about answers, so that robot frames and running text alone are not enough.
    """

    make: Callable[[VLMBackbone, float, int], Gatherer]
    asks: bool = False


KINDS = {
    "gaussian": Kind(lambda vlm, share, seed: GaussianMoments(vlm)),
    "subspace": Kind(InputFactors),
    "fisher": Kind(lambda vlm, share, seed: Fisher(vlm, seed), asks=True),
}


def gatherers(vlm: VLMBackbone, kinds: Iterable[str], share: float, seed: int) -> dict[str, Gatherer]:
    """What gathers each of these kinds."""
    return {name: KINDS[name].make(vlm, share, seed) for name in kinds}
