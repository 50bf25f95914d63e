"""Mean and deviation of every decoder layer's output: of all tokens, of those of images, of those of text."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from aegis_policy.anchors.gatherer import Continue, Gatherer
from aegis_policy.isolation import EPS, GaussianAnchor, MomentAccumulator, NoiseAccumulator, global_moments
from aegis_policy.vlm.backbone import VLMBackbone

TOKEN_GROUPS = ("all", "image", "text")


class GaussianMoments(Gatherer):
    """Gathers the Gaussian anchors of a VLM, one a group of tokens, from questions without answers and from frames."""

    needs_answers = False

    def __init__(self, vlm: VLMBackbone) -> None:
        self.vlm = vlm
        self.moments = {group: [MomentAccumulator() for _ in range(vlm.num_layers)] for group in TOKEN_GROUPS}
        self.noise = {group: NoiseAccumulator() for group in TOKEN_GROUPS}

    @contextmanager
    def watch(self, inputs: dict[str, Tensor]) -> Iterator[Continue]:
        with self.vlm.recorded_layers() as recorded:
            yield lambda goes_on_N: None
        hidden_states = recorded[: self.vlm.num_layers]  # of what is asked, and none of the answers' tokens
        mask_BT, is_image_BT = inputs["attention_mask"].bool(), self.vlm.image_tokens(inputs)
        groups = {"all": mask_BT, "image": mask_BT & is_image_BT, "text": mask_BT & ~is_image_BT}
        for group, of_group_BT in groups.items():
            for accumulator, hidden in zip(self.moments[group], hidden_states, strict=True):
                accumulator.update(hidden, of_group_BT)
            if of_group_BT.any():
                batch = global_moments(hidden_states, of_group_BT, EPS)
                self.noise[group].update(batch, len(of_group_BT))

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
