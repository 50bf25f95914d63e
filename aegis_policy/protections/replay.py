"""Replay: some of what the model should not forget is trained on again, in every step."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from aegis_policy.isolation import Anchor
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.base import PenalizedStep, Penalty, PenaltyOptions, Protection
from aegis_policy.support import ranks
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.loss import answer_loss

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts


@dataclass
class ReplayOptions(PenaltyOptions):
    """Options of `replay`.

    Attributes:
        replay_data: the questions with answers that it trains on too: one's own or a benchmark, as
            `aegis-anchor --vqa` takes them.
        replay_samples: how many of them.
        replay_batch_size: how many a step and process.
    """

    replay_data: str = "tabletop"
    replay_samples: int = 3_000
    replay_batch_size: int = 16


class Replay(Protection):
    """Questions with answers beside every robot batch (co-training). It needs VQA data, so it is the reference."""

    Options = ReplayOptions
    default_penalty = 1.0

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._examples = ranks.first_alone(
            lambda: load_vqa(
                self.config.replay_data,
                "--policy.replay_data",
                count=self.config.replay_samples,
                with_answers=True,
                refuses=cast("VLMBackbone", vlm).refuses,
            )
        )

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        return PenalizedStep(vlm.encode(inputs), partial(self._answer_loss, vlm))

    def _answer_loss(self, vlm: "VLMBackbone") -> Penalty:
        rows = torch.empty(self.config.replay_batch_size, device=vlm.device)
        drawn = ranks.share(lambda count: torch.randint(len(self._examples), (count,)), rows)
        loss = answer_loss(vlm, [self._examples[int(index)] for index in drawn], across_ranks=True)
        return Penalty(self.penalty * loss, {"vqa_loss": float(ranks.mean(loss.detach()))})
