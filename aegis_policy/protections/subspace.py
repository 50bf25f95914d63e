"""The subspace anchor under `aegis`, its default: it blocks leading directions of linear layers' pretrained inputs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import DEFAULT_SHARE, Anchor, AnchorError, LowRankProjector, select_blocks
from aegis_policy.protections.anchor_kind import AnchorKind, Figures, Gradient
from aegis_policy.protections.coverage import Coverage
from aegis_policy.support.errors import AegisError, some

if TYPE_CHECKING:
    from aegis_policy.vlm.parts import VLMParts

HOLD_EVERY = 10
"""In which of the optimizer's steps `aegis` holds the weights: one in so many.

To hold a weight takes 4 E D K operations in whole float32, whatever the batch: with 17 % of the directions a fifth of
a step of SmolLM2-135M's shape with 16 short samples on a CPU, and more of one whose other products are bfloat16 on a
GPU. The weights are compared with the pretrained ones and no steps are summed up, so what strayed comes back as a
whole, and nothing accumulates over a training, whose steps would add up by the thousand. Between, the flow loss is of
weights at most ten ordinary steps away along the blocked directions. Nobody else sees those: policies hold
before a checkpoint, the probe and evaluation. On the embedded VLM (120 steps of 8, backbone at 1.2e-3, 400 questions,
one seed) held in every step, every tenth and every fortieth kept 96.5, 97.2 and 97.0 % of 97.0 %, with losses alike
to two thousandths.
Ten divides the usual numbers of steps between checkpoints and probes, so that they fall on steps in which all ranks
hold; after others the rank that saves alone is held some steps before the rest, which follow.
"""


@dataclass
class SubspaceOptions:
    """Options of `subspace`.

    Attributes:
        anchor_share: the share of every linear layer's input directions to protect, the leading ones; above 0, at most
            1. By default `DEFAULT_SHARE`.
    """

    anchor_share: float | None = None


class Subspace(AnchorKind):
    """Blocks the leading directions of every layer's pretrained inputs, the same share of them in every layer.

    Nothing but the weights of linear layers learns beside it: no block guards norms, biases and embeddings.
    """

    name = "subspace"
    Options = SubspaceOptions
    defaults: ClassVar[Mapping[str, Any]] = {"anchor_share": DEFAULT_SHARE}
    part: ClassVar[Mapping[str, Any]] = {"factors": True}
    of_weights = True
    by_rows = True
    projector: LowRankProjector

    def held_by(self, anchor: Anchor) -> bool:
        return bool(anchor.factors)

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        require_factors(_learning(vlm), anchor)

    def guarded(self, vlm: "VLMParts") -> list[Tensor]:
        return [layer.weight for layer in vlm.linear_layers.values()]

    def begin_training(self, vlm: "VLMParts", anchor: Anchor) -> None:
        share = self.config.anchor_share
        assert share is not None, "resolved by ProtectionChoice"
        self.projector, self._coverage = block_layers(
            _learning(vlm), anchor, share, self.name, every=HOLD_EVERY
        )

    def coverages(self) -> Iterator[Coverage]:
        yield self._coverage

    def diagnose(self, gradient: Gradient) -> Figures:
        return {"vqa_gradient_blocked": float(self.projector.blocked_share(gradient))}


def block_layers(
    layers: Mapping[str, nn.Linear], anchor: Anchor, share: float, name: str, every: int = 1
) -> tuple[LowRankProjector, Coverage]:
    """What blocks a share of the layers' input directions, and how much that is.

    Args:
        layers: what learns, by the anchor's names.
        anchor: with the factors of all of them.
        share: see `select_blocks`.
        name: of what protects them, for messages.
        every: in which of the optimizer's steps weights are held: one in so many.

    Raises:
        AegisError: a layer is unknown to the anchor, or cannot be protected.
    """
    try:
        require_factors(layers, anchor)
    except AnchorError as error:
        raise AegisError(str(error)) from error
    factors = {each: anchor.factors[each] for each in layers}
    try:
        blocks = select_blocks(factors, share)
        return LowRankProjector(layers, blocks, every), Coverage.of(name, blocks, factors, share)
    except ValueError as error:
        raise AegisError(f"The {name} anchor cannot protect this model: {error}") from error


def _learning(vlm: "VLMParts") -> dict[str, nn.Linear]:
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
        width = len(anchor.factors[name].inputs.vectors_DK)
        if width != layer.in_features:
            raise AnchorError(
                f"The anchor's {name} has {width} inputs, and the model's {layer.in_features}", mend
            )
