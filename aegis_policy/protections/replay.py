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
from aegis_policy.support.errors import AegisError
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
        replay_batch_size: how many a step and process; 0, for `knowledge_insulation` alone: none.
    """

    replay_data: str = "tabletop"
    replay_samples: int = 3_000
    replay_batch_size: int = 16


class Questions:
    """The questions of `ReplayOptions`, some of them drawn anew in every step.

    Args:
        config: with the options.
        vlm: what answers.

    Raises:
        AegisError: they cannot be read, or have no answers.
    """

    def __init__(self, config: ReplayOptions, vlm: "VLMBackbone") -> None:
        self._a_step = config.replay_batch_size
        self._examples = ranks.first_alone(
            lambda: load_vqa(
                config.replay_data,
                "--policy.replay_data",
                count=config.replay_samples,
                with_answers=True,
                refuses=vlm.refuses,
            )
        )

    def loss(self, vlm: "VLMBackbone") -> Penalty:
        """The loss of the answers to this step's questions, which is also what is logged."""
        drawn = ranks.share(
            lambda count: torch.randint(len(self._examples), (count,)),
            torch.empty(self._a_step, device=vlm.device),
        )
        loss = answer_loss(vlm, [self._examples[int(index)] for index in drawn], across_ranks=True)
        return Penalty(loss, {"vqa_loss": float(ranks.mean(loss.detach()))})


class Replay(Protection):
    """Questions with answers beside every robot batch (co-training). It needs VQA data, so it is the reference."""

    Options = ReplayOptions
    default_penalty = 1.0

    def check_options(self) -> None:
        super().check_options()
        if not self.config.replay_batch_size:
            raise AegisError("--policy.replay_batch_size=0 leaves nothing to replay: give at least 1.")

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._questions = Questions(self.config, cast("VLMBackbone", vlm))

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        return PenalizedStep(vlm.encode(inputs), partial(self._answer_loss, vlm))

    def _answer_loss(self, vlm: "VLMBackbone") -> Penalty:
        asked = self._questions.loss(vlm)
        return asked._replace(loss=self.penalty * asked.loss)
