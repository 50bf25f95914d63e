"""Fisher information of single weights: squared gradients of the model's predictions, one sample at a time."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.anchors.answers import fisher_passes, with_answers
from aegis_policy.anchors.gatherer import Gatherer
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample


class Fisher(Gatherer):
    """Gathers the importance of every weight that may ever learn; as large as the model.

    Where no question had a picture, that of the decoder layers' weights alone.
    """

    def __init__(self, vlm: VLMBackbone, seed: int) -> None:
        self.vlm, self.seed = vlm, seed
        self.weights = _weights(vlm)
        self.totals = {name: torch.zeros_like(p) for name, p in self.weights.items()}

    def answered(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        for index, (example, answer) in enumerate(zip(batch, answers, strict=True)):
            inputs = with_answers(self.vlm, [example], [answer])
            logits, passes = fisher_passes(self.vlm, inputs, [self.seed, number, index])
            for cotangent in passes:
                gradients = torch.autograd.grad(
                    logits, list(self.weights.values()), cotangent, retain_graph=True, allow_unused=True
                )
                for total, gradient in zip(self.totals.values(), gradients, strict=True):
                    if gradient is not None:
                        total.addcmul_(gradient, gradient)

    def gathered(self) -> dict[str, Any]:
        totals = {
            name: x for name, x in self.totals.items() if name.startswith(self.vlm.family.decoder_layers)
        }
        vision = {name: x for name, x in self.totals.items() if name not in totals}
        if any(x.any() for x in vision.values()):
            totals |= vision
        mean = sum(float(x.sum()) for x in totals.values()) / sum(x.numel() for x in totals.values())
        if mean == 0:
            raise ValueError(
                "no answer's gradient reached a weight, so all Fisher information is zero: add questions."
            )
        return {"importance": {name: fisher.cpu() / mean for name, fisher in totals.items()}}

    def state(self) -> dict[str, Tensor]:
        return self.totals

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, total in self.totals.items():
            total.copy_(state[name])


def _weights(vlm: VLMBackbone) -> dict[str, nn.Parameter]:
    """Everything that may ever learn under a protection, by its name in the model."""
    parts = (vlm.vision_tower, vlm.projector, vlm.decoder_layers)
    wanted = {id(p) for part in parts for p in part.parameters()}
    return {name: p for name, p in vlm.model.named_parameters() if id(p) in wanted}
