"""How much of the answers' gradient lies along each direction that an anchor keeps of a layer's inputs.

The gradient is that of the loss of the model's own answers, so it says which directions of a weight they depend on; the
anchor's blocks hold as much of it as they hold of what would unlearn the answers.

Shape suffixes: D inputs, E outputs of a linear layer, K directions kept.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import batched

import torch
from torch import Tensor, nn
from tqdm import tqdm

from aegis_policy.isolation import LinearFactors
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample
from aegis_policy.vqa.loss import answer_loss

QUESTIONS = 32
"""How many questions the gradient is taken of."""
_AT_ONCE = 8
"""Questions in one backward pass."""


def with_gradients(
    vlm: VLMBackbone, examples: Sequence[VQAExample], factors: Mapping[str, LinearFactors]
) -> dict[str, LinearFactors]:
    """The factors with `gradient_K`, the sum of ||G u_k||^2 over that of ||G||^2, G a few questions' gradient (E, D).

    One weight's gradient is held at a time. A layer that no gradient reaches stays without.

    Args:
        vlm: the pretrained model.
        examples: questions, whose answers the model gives itself.
        factors: by layer.
    """
    layers = {name: layer for name, layer in vlm.linear_layers.items() if name in factors}
    sums = {name: torch.zeros(1 + len(each.inputs.values_K)) for name, each in factors.items()}
    learned = [parameter for parameter in vlm.parameters() if parameter.requires_grad]
    with ExitStack() as stack:
        stack.callback(lambda: [parameter.requires_grad_(True) for parameter in learned])
        vlm.requires_grad_(False)
        for name, layer in layers.items():
            assert isinstance(layer.weight, nn.Parameter)
            layer.weight.requires_grad_(True)
            stack.callback(layer.weight.requires_grad_, False)
            hook = layer.weight.register_post_accumulate_grad_hook(
                partial(_add, sums[name], factors[name].inputs.vectors_DK)
            )
            stack.callback(hook.remove)
        for part in tqdm(_parts(examples), desc="gradient of answers", unit="batch"):
            answers = vlm.answer([each.image for each in part], [each.question for each in part])
            told = [
                VQAExample(partial(getattr, each, "image"), each.question, answer)
                for each, answer in zip(part, answers, strict=True)
            ]
            answer_loss(vlm, told).backward()
    return {
        name: each._replace(gradient_K=sums[name][1:] / sums[name][0]) if sums[name][0] > 0 else each
        for name, each in factors.items()
    }


def _parts(examples: Sequence[VQAExample]) -> list[tuple[VQAExample, ...]]:
    """What is asked at once: a few questions, all with a picture or all without."""
    pictured: dict[bool, list[VQAExample]] = {False: [], True: []}
    for each in examples:
        pictured[each.image is not None].append(each)
    return [part for several in pictured.values() for part in batched(several, _AT_ONCE)]


def _add(sums: Tensor, vectors_DK: Tensor, weight: Tensor) -> None:
    """Add ||G||^2 and every ||G u_k||^2 of a weight's gradient, and let go of it."""
    assert weight.grad is not None
    gradient_ED, weight.grad = weight.grad.float(), None
    inside_K = (gradient_ED @ vectors_DK.to(gradient_ED)).square().sum(0)
    sums += torch.cat([gradient_ED.square().sum().unsqueeze(0), inside_K]).cpu()
