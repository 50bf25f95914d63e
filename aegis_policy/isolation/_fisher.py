"""Fisher information of a model's own predictions, from few backward passes.

It is the sum over tokens v of p_v (grad log p_v)(grad log p_v)^T for the prediction p at every place. Drawing one token
a place estimates it, but a model that is sure of its answer draws another once in a thousand times, and these few draws
are then most of all that was gathered. Here the heaviest terms are taken exactly, one in a backward pass, and the rest
together in one more with random signs, between which mixed terms vanish in expectation.

Shape suffixes: N samples, K places, V vocabulary, R terms.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

FISHER_EXACT = 3
"""Terms of every sample that have a backward pass of their own."""


@torch.no_grad()
def fisher_cotangents(
    logits_NKV: Tensor,
    valid_NK: Tensor | None = None,
    *,
    exact: int = FISHER_EXACT,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Gradients at the logits to start backward passes with, whose squares add up to the Fisher information.

    They do so in expectation over the signs of the last one.

    Args:
        logits_NKV: predictions of samples that do not see each other, at the places of each.
        valid_NK: which places count; all by default.
        exact: how many terms of every sample are taken exactly, the heaviest by `p_v |e_v - p|^2`.
        generator: of the signs, on the CPU.

    Yields:
        `exact` + 1 tensors (N, K, V), float32 or better.
    """
    p_NKV = logits_NKV.to(torch.promote_types(logits_NKV.dtype, torch.float32)).softmax(-1)
    root_NKV = p_NKV.sqrt()
    if valid_NK is not None:
        root_NKV = root_NKV * valid_NK.unsqueeze(-1)
    weight_NKV = root_NKV.square() * (1 - 2 * p_NKV + p_NKV.square().sum(-1, keepdim=True))
    heaviest_NR = weight_NKV.flatten(1).topk(min(exact, weight_NKV[0].numel())).indices
    for index_N1 in heaviest_NR.split(1, dim=1):
        chosen_NKV = torch.zeros_like(root_NKV)
        chosen_NKV.flatten(1).scatter_(1, index_N1, root_NKV.flatten(1).gather(1, index_N1))
        yield _of_log_probabilities(chosen_NKV, p_NKV)
    signs_NKV = torch.randint(0, 2, root_NKV.shape, dtype=torch.int8, generator=generator)
    rest_NKV = root_NKV * (2 * signs_NKV.to(root_NKV) - 1)
    rest_NKV.flatten(1).scatter_(1, heaviest_NR, 0.0)
    yield _of_log_probabilities(rest_NKV, p_NKV)


def _of_log_probabilities(cotangent_NKV: Tensor, p_NKV: Tensor) -> Tensor:
    """What a gradient at the logarithms of `p_NKV` is at the logits."""
    return cotangent_NKV - p_NKV * cotangent_NKV.sum(-1, keepdim=True)
