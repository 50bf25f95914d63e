"""What a pretrained VLM answers, as inputs to read again and as predictions: the anchor is about those, no label.

Shape suffixes: N samples, K answer tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from aegis_policy.isolation import fisher_cotangents
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vqa.examples import VQAExample


def with_answers(vlm: VLMBackbone, batch: Sequence[VQAExample], answers: Sequence[str]) -> dict[str, Tensor]:
    """The model's inputs: images, questions, and behind each question its answer."""
    return vlm.answer_inputs([each.image for each in batch], [each.question for each in batch], answers)


def fisher_passes(
    vlm: VLMBackbone, inputs: dict[str, Tensor], seed: Sequence[int]
) -> tuple[Tensor, Iterator[Tensor]]:
    """What backward passes start from whose squares add up to the Fisher information of the answers.

    Fisher information is about what the model would say, not about labels.

    Args:
        vlm: the model.
        inputs: see `with_answers`; every token of an answer there counts.
        seed: see `drawing`.

    Returns:
        The logits, with their graph, and a gradient at them for each pass.
    """
    logits_NKV, labels_NK = vlm.answer_logits(inputs)
    passes = fisher_cotangents(logits_NKV.detach(), labels_NK != NO_LABEL, generator=drawing(seed))
    return logits_NKV, (cotangent.to(logits_NKV) for cotangent in passes)


def drawing(seed: Sequence[int]) -> torch.Generator:
    """What draws a batch's signs: from its place in the stream alone, so that a continued pass draws the same."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))
