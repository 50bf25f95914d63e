"""Knowledge insulation: the backbone learns actions as tokens, and the action expert sends nothing back."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional as F

from aegis_policy.action_tokens import ActionChunks, action_tokenizer
from aegis_policy.errors import AegisError
from aegis_policy.isolation import Anchor
from aegis_policy.protections.base import Protection
from aegis_policy.vlm import Prefix

if TYPE_CHECKING:
    from aegis_policy.vlm import VLMBackbone


class KnowledgeInsulation(Protection):
    """Cross-entropy of action tokens trains the decoder, the flow loss the expert alone (arXiv 2505.23705).

    The tokens are the last `action_bins` entries of the vocabulary, which PaliGemma reserves (for segmentation). Their
    embeddings learn too and no other entry's; for that the whole embedding gets a gradient, which takes its memory.
    """

    gradient_flows = False
    options = frozenset({"penalty", "action_tokenizer", "action_bins"})
    default_penalty = 1.0

    def set_trainable(self, vlm: "VLMBackbone") -> None:
        super().set_trainable(vlm)
        for weight in _embeddings(vlm):
            weight.requires_grad_(True)

    def undecayed(self, vlm: "VLMBackbone") -> list[nn.Parameter]:
        return _embeddings(vlm)

    def begin_training(
        self, vlm: "VLMBackbone", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        self._tokenizer = action_tokenizer(self.config)
        for weight in _embeddings(vlm):
            if self.config.action_bins >= len(weight):
                raise AegisError(
                    f"--policy.action_bins={self.config.action_bins} does not fit into the {len(weight)} entries of "
                    "the VLM's vocabulary: take fewer."
                )
            weight.register_hook(partial(_only_last_rows, self.config.action_bins))

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> Prefix:
        tokens_BK, counts_BK = self._tokenizer.encode(chunks)
        first = len(vlm.model.get_input_embeddings().weight) - self.config.action_bins
        prefix, logits_BKV = vlm.encode_with_suffix(inputs, tokens_BK + first)
        losses_BK = F.cross_entropy(
            logits_BKV.flatten(0, 1).float(), (tokens_BK + first).flatten(), reduction="none"
        ).view_as(tokens_BK)
        self._loss = (losses_BK * counts_BK).sum() / counts_BK.sum().clamp(min=1)
        return Prefix(tuple(hidden.detach() for hidden in prefix.hidden_states), prefix.mask)

    def penalty_loss(self) -> tuple[Tensor, dict[str, float]]:
        loss = self._loss
        del self._loss
        return self.penalty * loss, {"action_token_loss": loss.item()}


def _embeddings(vlm: "VLMBackbone") -> list[nn.Parameter]:
    """Input embedding and head; one, where they are tied."""
    modules = (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings())
    return list({id(module.weight): module.weight for module in modules}.values())


def _only_last_rows(rows: int, gradient: Tensor) -> Tensor:
    kept = gradient.new_zeros(gradient.shape)
    kept[-rows:] = gradient[-rows:]
    return kept
