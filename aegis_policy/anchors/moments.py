"""Mean and deviation of every decoder layer's output, over all valid tokens."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from aegis_policy.anchors.gatherer import Continue, Gatherer
from aegis_policy.isolation import EPS, GaussianAnchor, MomentAccumulator, NoiseAccumulator, global_moments
from aegis_policy.vlm.backbone import VLMBackbone


class GaussianMoments(Gatherer):
    """Gathers the Gaussian anchor of a VLM from questions without answers, from frames and from text."""

    needs_answers = False

    def __init__(self, vlm: VLMBackbone) -> None:
        self.vlm = vlm
        self.moments = [MomentAccumulator() for _ in range(vlm.num_layers)]
        self.noise = NoiseAccumulator()

    @contextmanager
    def watch(self, inputs: dict[str, Tensor]) -> Iterator[Continue]:
        with self.vlm.recorded_layers() as recorded:
            yield lambda goes_on_N: None
        hidden_states = recorded[: self.vlm.num_layers]  # of what is asked, and none of the answers' tokens
        mask_BT = inputs["attention_mask"].bool()
        for accumulator, hidden in zip(self.moments, hidden_states, strict=True):
            accumulator.update(hidden, mask_BT)
        self.noise.update(global_moments(hidden_states, mask_BT, EPS), len(mask_BT))

    def gathered(self) -> dict[str, Any]:
        exact = GaussianAnchor.from_accumulators(self.moments)
        noise_LD = self.noise.noise(exact.mean_LD, exact.std_LD)
        return {"gaussians": {"all": GaussianAnchor(exact.mean_LD, exact.std_LD, exact.count, noise_LD)}}

    def state(self) -> dict[str, Tensor]:
        state = {f"noise/{key}": x for key, x in self.noise.state().items()}
        for depth, accumulator in enumerate(self.moments):
            state |= {f"{depth}/{key}": x for key, x in accumulator.state().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.noise.load_state({key: state[f"noise/{key}"] for key in self.noise.state()})
        for depth, accumulator in enumerate(self.moments):
            accumulator.load_state({key: state[f"{depth}/{key}"] for key in accumulator.state()})
