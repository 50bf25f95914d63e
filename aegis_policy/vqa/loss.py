"""The loss that VQA is trained with: cross-entropy of the answers' tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from aegis_policy.support import ranks
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vqa.examples import VQAExample

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone


def answer_loss(vlm: "VLMBackbone", examples: Sequence[VQAExample], *, across_ranks: bool = False) -> Tensor:
    """Mean over all answer tokens of the examples, a scalar, differentiable; every example has an answer.

    Args:
        vlm: what answers.
        examples: with answers.
        across_ranks: all ranks ask, each its own examples, and what they return has the mean over all tokens of all
            ranks as its mean over ranks.
    """
    logits_NKV, labels_NK = vlm.answer_logits(
        vlm.answer_inputs(
            [each.image for each in examples],
            [each.question for each in examples],
            [str(each.answer) for each in examples],
        )
    )
    total = F.cross_entropy(
        logits_NKV.flatten(0, 1).float(), labels_NK.flatten(), ignore_index=NO_LABEL, reduction="sum"
    )
    tokens = (labels_NK != NO_LABEL).sum().to(total)
    return total / (ranks.mean(tokens) if across_ranks else tokens)
