"""What a pretrained VLM answers, as inputs to read again and as answers to draw: the anchor is about those, no label.

Shape suffixes: N samples, K answer tokens, V vocabulary, M answer tokens of all samples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vqa.examples import VQAExample


def with_answers(vlm: VLMBackbone, batch: Sequence[VQAExample], answers: Sequence[str]) -> dict[str, Tensor]:
    """The model's inputs: images, questions, and behind each question its answer."""
    return vlm.answer_inputs([each.image for each in batch], [each.question for each in batch], answers)


def loss_of_drawn_answers(vlm: VLMBackbone, inputs: dict[str, Tensor], seed: Sequence[int]) -> Tensor:
    """The summed cross-entropy of tokens drawn from the model's own predictions, a scalar.

    Fisher information is about the gradient of those, not of labels.

    Args:
        vlm: the model.
        inputs: see `with_answers`; a token is drawn for every token of an answer there.
        seed: see `drawing`.
    """
    logits_NKV, labels_NK = vlm.answer_logits(inputs)
    logits_MV = logits_NKV[labels_NK != NO_LABEL].float()
    drawn_M = torch.multinomial(logits_MV.detach().softmax(-1).cpu(), 1, generator=drawing(seed)).squeeze(1)
    return torch.nn.functional.cross_entropy(logits_MV, drawn_M.to(logits_MV.device), reduction="sum")


def drawing(seed: Sequence[int]) -> torch.Generator:
    """What draws a batch's answers: from its place in the stream alone, so that a continued pass draws the same."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
