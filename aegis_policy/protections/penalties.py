"""Penalties beside the flow loss: on the distance of the activations, and on the way of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, AnchorError, GaussianAnchor, distance_penalty, weight_penalty
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.base import (
    AnchorOptions,
    PenalizedStep,
    Penalty,
    PenaltyOptions,
    Protection,
)
from aegis_policy.support.errors import AegisError, some

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts
    from aegis_policy.vlm.prefix import Prefix


@dataclass
class AnchoredPenaltyOptions(PenaltyOptions, AnchorOptions):
    """Options of penalties that compare with an anchor."""


class W2Penalty(Protection):
    """The Gaussian anchor's distance as a penalty: what AEGIS projects against is added to the loss instead."""

    Options = AnchoredPenaltyOptions
    needs_anchor = True
    default_penalty = 0.002

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        if "all" not in anchor.gaussians:
            raise AnchorError(
                "The anchor holds no moments for --policy.protection=w2_penalty",
                "rebuild it with aegis-anchor --kinds=[gaussian]",
            )

    def part_of(self, anchor: Anchor) -> Anchor:
        return anchor.part(gaussians=("all",))

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        assert anchor is not None
        self._gaussian: GaussianAnchor = anchor.gaussians["all"].first(vlm.depth)

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        prefix = vlm.encode(inputs)
        return PenalizedStep(prefix, partial(self._distance, prefix))

    def _distance(self, prefix: "Prefix") -> Penalty:
        distance = distance_penalty(prefix.hidden_states, prefix.mask, self._gaussian)
        return Penalty(self.penalty * distance, {"gaussian_anchor_distance": distance.item()})


def what_learns(
    vlm: "VLMParts", reference: Mapping[str, Tensor] | None
) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters that learn, and their pretrained values, by name.

    Raises:
        AegisError: there are none of one.
    """
    assert reference is not None, "of a protection with needs_reference"
    parameters = {name: p for name, p in vlm.model.named_parameters() if p.requires_grad}
    if missing := sorted(parameters.keys() - reference.keys()):
        raise AegisError(
            f"This checkpoint does not know the pretrained value of {some(missing)}, "
            "which did not learn when it was trained: leave what of the vision side trains as it was "
            "(--policy.train_vision_tower and --policy.train_projector, or --policy.freeze_vision_encoder)."
        )
    return parameters, {name: reference[name].to(vlm.device) for name in parameters}


class L2SP(Protection):
    """Weights are drawn back to where they started (arXiv 1802.01483)."""

    of_weights = True
    Options: ClassVar[type] = PenaltyOptions
    needs_reference = True
    default_penalty = 0.01

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._parameters, self._reference = what_learns(vlm, reference)
        self._importance = None
        if anchor is not None:
            self._importance = {name: anchor.importance[name].to(vlm.device) for name in self._parameters}

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        return PenalizedStep(vlm.encode(inputs), self.weight_penalty)

    def weight_penalty(self) -> Penalty:
        loss = self.penalty * weight_penalty(self._parameters, self._reference, self._importance)
        return Penalty(loss, {"weight_penalty": loss.item()})


class EWC(L2SP):
    """The same, each weight as strongly as VQA depends on it: elastic weight consolidation (arXiv 1612.00796)."""

    Options = AnchoredPenaltyOptions
    needs_anchor = True

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        mend = "rebuild it with aegis-anchor --kinds=[fisher] and name it with --policy.anchor_path"
        if not anchor.importance:
            raise AnchorError(
                "The anchor holds no Fisher information of single weights for --policy.protection=ewc", mend
            )
        learns = {name: p for name, p in vlm.model.named_parameters() if p.requires_grad}
        if unfit := [
            name
            for name, p in learns.items()
            if name not in anchor.importance or anchor.importance[name].shape != p.shape
        ]:
            raise AnchorError(
                f"The anchor's Fisher information is not of {some(unfit)}, which would learn",
                mend,
            )

    def part_of(self, anchor: Anchor) -> Anchor:
        return anchor.part(importance=True)
