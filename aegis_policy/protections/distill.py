"""Distillation: hidden states stay near those of the pretrained model on the robot's own frames.

Shapes: B batch, T prefix tokens, D hidden size.
"""

from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aegis_policy.isolation import Anchor
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.base import PenalizedStep, Penalty, PenaltyOptions, Protection
from aegis_policy.protections.penalties import what_learns
from aegis_policy.support import ranks
from aegis_policy.vlm.prefix import Prefix

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts


class Distill(Protection):
    """Every layer's hidden states are drawn to the pretrained model's on the same frames, by a second forward pass.

    As Anchor-Align (arXiv 2607.13429), of which no more than that was known here: the loss is the squared distance of a
    token's hidden state to the pretrained one, over the latter's squared length, averaged over tokens and layers. The
    pretrained model is its weights alone, read in the place of those that learn.
    """

    Options = PenaltyOptions
    needs_reference = True
    default_penalty = 1.0

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        _, pretrained = what_learns(vlm, reference)
        self._pretrained = {f"vlm.model.{name}": value for name, value in pretrained.items()}
        self._encoder = _Encoder(cast("VLMBackbone", vlm))

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        with torch.no_grad():
            before: Prefix = functional_call(self._encoder, self._pretrained, (inputs,))
        prefix = vlm.encode(inputs)
        return PenalizedStep(prefix, partial(self._distance, prefix, before))

    def _distance(self, prefix: Prefix, before: Prefix) -> Penalty:
        valid_BT = prefix.mask
        tokens = ranks.mean(valid_BT.sum().float())
        layers = [
            _relative_BT(now_BTD, then_BTD)[valid_BT].sum()
            for now_BTD, then_BTD in zip(prefix.hidden_states, before.hidden_states, strict=True)
        ]
        distance = torch.stack(layers).mean() / tokens
        return Penalty(self.penalty * distance, {"hidden_distance": float(ranks.mean(distance.detach()))})


class _Encoder(nn.Module):
    """A VLM's prefix encoder as a module, for `functional_call`."""

    def __init__(self, vlm: "VLMBackbone") -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, inputs: dict[str, Tensor]) -> Prefix:
        return self.vlm.encode(inputs)


def _relative_BT(now_BTD: Tensor, then_BTD: Tensor) -> Tensor:
    then_BTD = then_BTD.float()
    squared_BT = then_BTD.square().sum(-1)
    return (now_BTD.float() - then_BTD).square().sum(-1) / squared_BT.clamp(
        min=torch.finfo(torch.float32).tiny
    )
