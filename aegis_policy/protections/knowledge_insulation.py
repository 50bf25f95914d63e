"""Knowledge insulation: the backbone learns actions as tokens and answers, the action expert sends nothing back."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aegis_policy.isolation import Anchor
from aegis_policy.protections.action_tokens import ActionChunks, action_tokenizer
from aegis_policy.protections.base import PenalizedStep, Penalty, Protection
from aegis_policy.protections.replay import Questions, ReplayOptions
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.prefix import Prefix

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts


@dataclass
class KnowledgeInsulationOptions(ReplayOptions):
    """Options of `knowledge_insulation`, besides those of its questions.

    Attributes:
        action_tokenizer: what turns action chunks into tokens, see `aegis_policy.protections.action_tokens`.
        action_bins: how many tokens at the end of the vocabulary are reserved for it.
    """

    action_tokenizer: str = "uniform"
    action_bins: int = 128


class KnowledgeInsulation(Protection):
    """Cross-entropy of action tokens, and of answers to questions beside them, trains the decoder, the flow loss the
    expert alone (arXiv 2505.23705).

    In the paper a token of an answer counts as one of an action; here each mean counts alike. Without questions
    (`replay_batch_size=0`) the backbone forgets most of what it knew.

    The tokens are the last `action_bins` words of the vocabulary (`VLMBackbone.reserved_tokens`). Their embeddings
    learn too and no other word's; for that the whole embedding gets a gradient, which takes its memory.
    """

    Options = KnowledgeInsulationOptions
    gradient_flows = False
    default_penalty = 1.0

    def idle(self) -> dict[str, str]:
        names = () if self.config.replay_batch_size else ("replay_data", "replay_samples")
        return dict.fromkeys(names, "--policy.replay_batch_size=0")

    def set_trainable(self, vlm: "VLMParts") -> None:
        super().set_trainable(vlm)
        for weight in _embeddings(vlm):
            weight.requires_grad_(True)

    def undecayed(self, vlm: "VLMParts") -> list[nn.Parameter]:
        return _embeddings(vlm)

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._tokenizer = action_tokenizer(self.config)
        self._questions = (
            Questions(self.config, cast("VLMBackbone", vlm)) if self.config.replay_batch_size else None
        )
        try:
            self._words = cast("VLMBackbone", vlm).reserved_tokens(self.config.action_bins)
        except AegisError as error:
            raise AegisError(f"--policy.action_bins={self.config.action_bins}: {error}") from error
        for weight in _embeddings(vlm):
            weight.register_hook(partial(_only_rows, self._words))

    def begin_step(
        self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks
    ) -> PenalizedStep:
        tokens_BK, counts_BK = self._tokenizer.encode(chunks)
        words_BK = self._words[tokens_BK]
        prefix, logits_BKV = vlm.encode_with_suffix(inputs, words_BK)
        losses_BK = F.cross_entropy(
            logits_BKV.flatten(0, 1).float(), words_BK.flatten(), reduction="none"
        ).view_as(tokens_BK)
        tokens = ranks.mean(counts_BK.sum().to(losses_BK)).clamp(min=1)
        loss = (losses_BK * counts_BK).sum() / tokens
        cut = Prefix(tuple(hidden.detach() for hidden in prefix.hidden_states), prefix.mask)
        return PenalizedStep(cut, partial(self._token_loss, vlm, loss))

    def _token_loss(self, vlm: "VLMBackbone", loss: Tensor) -> Penalty:
        figures = {"action_token_loss": float(ranks.mean(loss.detach()))}
        if self._questions is not None:
            asked = self._questions.loss(vlm)
            loss, figures = loss + asked.loss, figures | asked.figures
        return Penalty(self.penalty * loss, figures)


def _embeddings(vlm: "VLMParts") -> list[nn.Parameter]:
    """Input embedding and head; one, where they are tied."""
    modules = (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules}.values())


def _only_rows(rows: Tensor, gradient: Tensor) -> Tensor:
    kept = torch.zeros_like(gradient)
    kept[rows] = gradient[rows]
    return kept
