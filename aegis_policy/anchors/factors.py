"""Covariances of what goes through every linear layer while the model reads frames, or questions with its answers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from aegis_policy.anchors.answers import fisher_passes, with_answers
from aegis_policy.isolation import FactorAccumulator
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample


class InputFactors:
    """Gathers the covariances of linear layers' inputs, padding left out where there is any.

    Memory: for each linear layer (D inputs, E outputs) 24 `rank` (D + E) bytes of sketches, or 12 D^2 where D is not
    wider than twice the rank.
    """

    needs_answers = True
    outputs = False

    def __init__(self, vlm: VLMBackbone, rank: int, seed: int) -> None:
        self.vlm, self.seed = vlm, seed
        prefix = vlm.family.decoder_layers
        decoder = {name: layer for name, layer in vlm.linear_layers.items() if name.startswith(prefix)}
        vision = {name: layer for name, layer in vlm.linear_layers.items() if name not in decoder}
        self.decoder, self.vision = (
            FactorAccumulator(part, rank, outputs=self.outputs, seed=seed) for part in (decoder, vision)
        )

    @torch.no_grad()
    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        inputs = with_answers(self.vlm, batch, answers)
        with self.collect(inputs):
            self.vlm.answer_logits(inputs)

    @torch.no_grad()
    def frames(self, inputs: dict[str, Tensor]) -> None:
        with self.collect(inputs):
            self.vlm.encode(inputs)

    @contextmanager
    def collect(self, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Take what goes through every layer: the decoder's see padding, those of the vision tower do not."""
        with self.decoder.collect(inputs["attention_mask"]), self.vision.collect():
            yield

    def gathered(self) -> dict[str, Any]:
        return {"factors": self.decoder.factors() | self.vision.factors()}

    def state(self) -> dict[str, Tensor]:
        return self.decoder.state() | self.vision.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.decoder.load_state(state)
        self.vision.load_state(state)


class KroneckerFactors(InputFactors):
    """Gathers the covariances of their outputs' gradients too, which are those of the answers; frames have none."""

    outputs = True

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        inputs = with_answers(self.vlm, batch, answers)
        if "pixel_values" not in inputs:
            raise AegisError(
                "the anchor kronecker is made of gradients that reach a picture: leave questions without one out."
            )
        # Every layer's outputs depend on the pixels: their gradient is one that passes through all of them.
        inputs["pixel_values"].requires_grad_()
        with self.collect(inputs):
            logits, passes = fisher_passes(self.vlm, inputs, [self.seed, number])
            for cotangent in passes:
                torch.autograd.grad(logits, inputs["pixel_values"], cotangent, retain_graph=True)
