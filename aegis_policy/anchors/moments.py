"""Mean and deviation of every decoder layer's output: of all tokens, of those of images, of those of text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from aegis_policy.isolation import EPS, GaussianAnchor, MomentAccumulator, NoiseAccumulator, global_moments
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample

TOKEN_GROUPS = ("all", "image", "text")


class GaussianMoments:
    """Gathers the Gaussian anchors of a VLM, one a group of tokens, from questions without answers and from frames."""

    needs_answers = False

    def __init__(self, vlm: VLMBackbone) -> None:
        self.vlm = vlm
        self.moments = {group: [MomentAccumulator() for _ in range(vlm.num_layers)] for group in TOKEN_GROUPS}
        self.noise = {group: NoiseAccumulator() for group in TOKEN_GROUPS}

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        images, questions = [each.image for each in batch], [each.question for each in batch]
        self.frames(self.vlm.question_inputs(images, questions))

    @torch.no_grad()
    def frames(self, inputs: dict[str, Tensor]) -> None:
        prefix = self.vlm.encode(inputs)
        is_image = self.vlm.image_tokens(inputs)
        masks = {"all": prefix.mask, "image": prefix.mask & is_image, "text": prefix.mask & ~is_image}
        for group, mask_BT in masks.items():
            for accumulator, hidden in zip(self.moments[group], prefix.hidden_states, strict=True):
                accumulator.update(hidden, mask_BT)
            if mask_BT.any():
                batch = global_moments(prefix.hidden_states, mask_BT, EPS)
                self.noise[group].update(batch, len(mask_BT))

    def gathered(self) -> dict[str, Any]:
        anchors = {}
        for group, accumulators in self.moments.items():
            exact = GaussianAnchor.from_accumulators(accumulators)
            noise_LD = self.noise[group].noise(exact.mean_LD, exact.std_LD)
            anchors[group] = GaussianAnchor(exact.mean_LD, exact.std_LD, exact.count, noise_LD)
        return {"gaussians": anchors}

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for group, accumulators in self.moments.items():
            state |= {f"{group}/noise/{key}": x for key, x in self.noise[group].state().items()}
            for depth, accumulator in enumerate(accumulators):
                state |= {f"{group}/{depth}/{key}": x for key, x in accumulator.state().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for group, accumulators in self.moments.items():
            self.noise[group].load_state({key: state[f"{group}/noise/{key}"] for key in ("batches", "sums")})
            for depth, accumulator in enumerate(accumulators):
                keys = accumulator.state()
                accumulator.load_state({key: state[f"{group}/{depth}/{key}"] for key in keys})
