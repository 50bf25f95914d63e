"""Replay: some of what the model should not forget is trained on again, in every step."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aegis_policy.isolation import Anchor
from aegis_policy.protections.base import Protection
from aegis_policy.support import ranks
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.loss import answer_loss

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone


class Replay(Protection):
    """Questions with answers beside every robot batch (co-training). It needs VQA data, so it is the reference."""

    options = frozenset({"penalty", "replay_data", "replay_samples", "replay_batch_size"})
    default_penalty = 1.0

    def begin_training(
        self, vlm: "VLMBackbone", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._vlm = vlm
        self._examples = ranks.first_alone(
            lambda: list(
                load_vqa(
                    self.config.replay_data,
                    "--policy.replay_data",
                    count=self.config.replay_samples,
                    with_answers=True,
                )
            )
        )

    def penalty_loss(self) -> tuple[Tensor, dict[str, float]]:
        rows = torch.empty(self.config.replay_batch_size, device=self._vlm.device)
        drawn = ranks.share(lambda count: torch.randint(len(self._examples), (count,)), rows)
        loss = answer_loss(self._vlm, [self._examples[int(index)] for index in drawn], across_ranks=True)
        return self.penalty * loss, {"vqa_loss": float(ranks.mean(loss.detach()))}
