"""Weights that are drawn back to the pretrained ones after every step, beside the optimizer instead of through it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, DecoupledDecay, Projector, SelectiveProjectionDecay
from aegis_policy.protections.base import PenaltyOptions, Protection
from aegis_policy.protections.penalties import what_learns

if TYPE_CHECKING:
    from aegis_policy.vlm.parts import VLMParts


class _Proximity(Protection, ABC):
    Options = PenaltyOptions
    of_weights = True
    needs_reference = True
    projects = True

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        parameters, pretrained = what_learns(vlm, reference)
        self._projector = self._make(vlm, {p: pretrained[name] for name, p in parameters.items()})
        self.projectors = (self._projector,)

    def weight_figures(self) -> dict[str, float]:
        return self._projector.metrics()

    @abstractmethod
    def _make(self, vlm: "VLMParts", pretrained: Mapping[nn.Parameter, Tensor]) -> Projector:
        """What draws back."""


class DecoupledL2SP(_Proximity):
    """`l2_sp` as AdamW decays: the way of a weight times `penalty` and the learning rate is taken back after each step.

    In the loss, as in arXiv 1802.01483, AdamW divides the pull by how large the task's gradients are.
    """

    default_penalty = 10.0

    def _make(self, vlm: "VLMParts", pretrained: Mapping[nn.Parameter, Tensor]) -> DecoupledDecay:
        return DecoupledDecay(pretrained, self.penalty)


class MAPS(_Proximity):
    """Module-wise proximity scheduling (arXiv 2511.19878): selective projection decay, strongest in front.

    The strength falls linearly from `penalty` to nothing over what learns: a vision tower and a projector, each of
    them one module, then the decoder layers in their order. In the paper it is the same from module to module.
    """

    default_penalty = 1.0

    def _make(self, vlm: "VLMParts", pretrained: Mapping[nn.Parameter, Tensor]) -> SelectiveProjectionDecay:
        modules = list(_modules_in_order(vlm))
        steps = max(len(modules) - 1, 1)
        return SelectiveProjectionDecay(
            pretrained,
            {p: self.penalty * (1 - number / steps) for number, module in enumerate(modules) for p in module},
        )


def _modules_in_order(vlm: "VLMParts") -> Iterator[list[nn.Parameter]]:
    """What learns of every module that does, from the camera on."""
    for module in (vlm.vision_tower, vlm.projector, *vlm.decoder_layers):
        if learns := [p for p in module.parameters() if p.requires_grad]:
            yield learns
