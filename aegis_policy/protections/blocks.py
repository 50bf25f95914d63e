"""The anchors that block a part of linear layers' weights, and `subspace`, the default among them."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import (
    DEFAULT_SHARE,
    Anchor,
    AnchorError,
    BlockedComponents,
    LinearFactors,
    LowRankProjector,
    select_blocks,
)
from aegis_policy.protections.anchor_kind import AnchorKind, Figures, Gradient
from aegis_policy.protections.coverage import Coverage
from aegis_policy.support.errors import AegisError, some

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone

Rule = Callable[[Mapping[str, LinearFactors]], Mapping[str, BlockedComponents]]
"""Factors by layer -> what may not move of each; it raises a ValueError where the factors do not do."""

HOLD_EVERY = 10
"""In which of the optimizer's steps `aegis` holds the weights: one in so many.

To hold a weight takes 4 E D K operations in whole float32, whatever the batch: a fifth of a step of SmolLM2-135M's
shape with 16 short samples on a CPU, and more of one whose other products are bfloat16 on a GPU. The weights are
compared with the pretrained ones and no steps are summed up, so what strayed comes back as a whole, and nothing
accumulates over a training, whose steps would add up by the thousand. Between, the flow loss is of weights at most ten
ordinary steps away along the blocked directions. Nobody else sees those: `AegisPolicy` holds before a checkpoint, the
probe and evaluation. On the embedded VLM (120 steps of 8, backbone at 1.2e-3, 400 questions, one seed) held in every
step, every tenth and every fortieth kept 96.5, 97.2 and 97.0 % of 97.0 %, with losses alike to two thousandths.
Ten divides the usual numbers of steps between checkpoints and probes, so that they fall on steps in which all ranks
hold; after others the rank that saves alone is held some steps before the rest, which follow.
"""


class BlockKind(AnchorKind):
    """Blocks a part of linear layers' weights.

    Nothing but those weights learns beside it: no block guards norms, biases and embeddings.
    """

    projector: LowRankProjector

    @property
    def share(self) -> float | None:
        """The share of every layer's input directions that it asks an anchor for, if it asks for one."""
        return None

    @abstractmethod
    def select(self, factors: Mapping[str, LinearFactors]) -> Mapping[str, BlockedComponents]:
        """The kind's rule, see `Rule`."""

    def held_by(self, anchor: Anchor) -> bool:
        return bool(anchor.factors)

    def check_anchor(self, anchor: Anchor, vlm: "VLMBackbone") -> None:
        require_factors(_learning(vlm), anchor)

    @property
    def part(self) -> dict[str, Any]:
        return {"inputs": True}

    def guarded(self, vlm: "VLMBackbone") -> list[Tensor]:
        return [layer.weight for layer in vlm.linear_layers.values()]

    def begin_training(self, vlm: "VLMBackbone", anchor: Anchor) -> None:
        self.projector, self._coverage = block_layers(
            _learning(vlm), anchor, self.select, self.name, self.share, every=HOLD_EVERY
        )

    def coverages(self) -> Iterator[Coverage]:
        yield self._coverage

    def diagnose(self, gradient: Gradient) -> Figures:
        return {"vqa_gradient_blocked": float(self.projector.blocked_share(gradient))}


@dataclass
class SubspaceOptions:
    """Options of `subspace`.

    Attributes:
        anchor_share: the share of every linear layer's input directions to protect, the leading ones; above 0, at most
            1. By default `DEFAULT_SHARE`.
    """

    anchor_share: float | None = None


class Subspace(BlockKind):
    """Blocks the leading directions of every layer's pretrained inputs, the same share of them in every layer."""

    name = "subspace"
    Options = SubspaceOptions
    defaults: ClassVar[Mapping[str, Any]] = {"anchor_share": DEFAULT_SHARE}

    @property
    def share(self) -> float:
        assert self.config.anchor_share is not None, "resolved by AegisConfig"
        return self.config.anchor_share

    def select(self, factors: Mapping[str, LinearFactors]) -> Mapping[str, BlockedComponents]:
        return select_blocks(factors, self.share)


def block_layers(
    layers: Mapping[str, nn.Linear],
    anchor: Anchor,
    rule: Rule,
    name: str,
    share: float | None = None,
    every: int = 1,
) -> tuple[LowRankProjector, Coverage]:
    """What blocks the part of the layers' weights that a rule selects, and how much that is.

    Args:
        layers: what learns, by the anchor's names.
        anchor: with the factors of all of them.
        rule: see `Rule`.
        name: of the anchor's kind.
        share: of every layer's input directions that the rule asks for, if it asks for one.
        every: in which of the optimizer's steps weights are held: one in so many.

    Raises:
        AegisError: a layer is unknown to the anchor, or the anchor cannot protect what the rule asks for.
    """
    try:
        require_factors(layers, anchor)
    except AnchorError as error:
        raise AegisError(str(error)) from error
    factors = {each: anchor.factors[each] for each in layers}
    try:
        blocks = rule(factors)
        return LowRankProjector(layers, blocks, every), Coverage.of(name, blocks, factors, share)
    except ValueError as error:
        raise AegisError(f"The {name} anchor cannot protect this model: {error}") from error


def _learning(vlm: "VLMBackbone") -> dict[str, nn.Linear]:
    return {name: layer for name, layer in vlm.linear_layers.items() if layer.weight.requires_grad}


def require_factors(layers: Mapping[str, nn.Linear], anchor: Anchor) -> None:
    """See that an anchor knows all of these layers, as wide as they are.

    Raises:
        AnchorError: it does not.
    """
    mend = "rebuild it from this VLM with aegis-anchor"
    if missing := sorted(layers.keys() - anchor.factors.keys()):
        raise AnchorError(
            f"The anchor says nothing about {some(missing)}, which would learn unprotected",
            mend,
        )
    for name, layer in layers.items():
        inputs, outputs, _ = anchor.factors[name]
        sides = [(inputs, layer.in_features, "inputs"), (outputs, layer.out_features, "outputs")]
        for spectrum, width, side in sides:
            if spectrum is not None and len(spectrum.vectors_DK) != width:
                raise AnchorError(
                    f"The anchor's {name} has {len(spectrum.vectors_DK)} {side}, and the model's {width}",
                    mend,
                )
