"""The loss that VQA is trained with: cross-entropy of the answers' tokens."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from aegis_policy.vlm import NO_LABEL, VLMBackbone
from aegis_policy.vqa_data import VQAExample


def answer_loss(vlm: VLMBackbone, examples: Sequence[VQAExample]) -> Tensor:
    """Mean over all answer tokens of the examples, a scalar, differentiable; every example has an answer."""
    logits_NKV, labels_NK = vlm.answer_logits(
        vlm.answer_inputs(
            [each.image for each in examples],
            [each.question for each in examples],
            [str(each.answer) for each in examples],
        )
    )
    return F.cross_entropy(logits_NKV.flatten(0, 1).float(), labels_NK.flatten(), ignore_index=NO_LABEL)
