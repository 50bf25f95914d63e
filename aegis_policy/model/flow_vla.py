"""A vision-language-action model by flow matching: a VLM that reads cameras and instruction, an expert that acts.

It knows neither LeRobot nor protections: how the prefix of a training step is encoded is the caller's business.

Shapes: B batch, F flow samples an observation, N = F B, T prefix tokens, H action horizon, A action dimension, S state
dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from aegis_policy.model import flow_matching
from aegis_policy.model.compiled_expert import CompiledExpert
from aegis_policy.model.expert import ActionExpert, PrefixCache
from aegis_policy.support import ranks
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prefix import Prefix


@dataclass(frozen=True)
class FlowVLA:
    """The two networks as one model. It owns neither, so that their weights keep the names their owner gives them."""

    vlm: VLMBackbone
    expert: ActionExpert

    def losses(
        self,
        prefix: Prefix,
        state_BS: Tensor,
        actions_BHA: Tensor,
        is_pad_BH: Tensor | None,
        noise_NHA: Tensor,
        time_N: Tensor,
        *,
        across_ranks: bool,
    ) -> Tensor:
        """Flow-matching loss of each sample (B,), whose mean is the mean over all valid action steps.

        The prefix was encoded once; the expert is asked about it at F points of the path, whose losses are averaged.

        Args:
            prefix: of the B observations.
            state_BS: normalised.
            actions_BHA: normalised.
            is_pad_BH: which of their steps lie beyond the episode's end; None where none does.
            noise_NHA, time_N: where on the path; the whole batch F times over.
            across_ranks: count the valid steps of the global batch.
        """
        samples = len(noise_NHA) // len(actions_BHA)
        targets_NHA = actions_BHA.repeat(samples, 1, 1)
        velocity_NHA = self.expert(
            flow_matching.interpolate(noise_NHA, targets_NHA, time_N),
            time_N,
            state_BS.repeat(samples, 1),
            self._cache(prefix),
        )
        loss_N = flow_matching.sample_losses(
            velocity_NHA,
            flow_matching.target_velocity(noise_NHA, targets_NHA),
            None if is_pad_BH is None else is_pad_BH.repeat(samples, 1),
        )
        loss_B = loss_N.view(samples, -1).mean(0)
        return loss_B / _valid_steps_a_sample(actions_BHA, is_pad_BH, across_ranks)

    def sample(
        self,
        inputs: dict[str, Tensor],
        state_BS: Tensor,
        noise_BHA: Tensor,
        num_steps: int,
        sampler: flow_matching.Sampler = flow_matching.euler_sample,
        compiled: CompiledExpert | None = None,
    ) -> Tensor:
        """Chunks of normalised actions (B, H, A) in float32, by `num_steps` Euler steps from noise.

        Args:
            inputs: as `VLMBackbone.prepare` makes them.
            state_BS: normalised.
            noise_BHA: where to start.
            num_steps: the prefix is encoded once for all of them.
            sampler: takes these steps.
            compiled: runs the expert in each of them.
        """
        cache = self._cache(self.vlm.encode(inputs))
        expert = self.expert if compiled is None else partial(compiled, self.expert)
        return sampler(
            lambda x_BHA, time_B: expert(x_BHA, time_B, state_BS, cache).float(), noise_BHA, num_steps
        )

    def _cache(self, prefix: Prefix) -> PrefixCache:
        return self.expert.prepare_prefix(prefix.hidden_states, prefix.mask)


def draw(one_round: Callable[[int], Tensor], like: Tensor, rounds: int) -> Tensor:
    """This rank's rows of random draws for the global batch, one round after the other.

    Args:
        one_round: draws so many rows.
        like: this rank's batch.
        rounds: how many.
    """
    return torch.cat([ranks.share(one_round, like) for _ in range(rounds)])


def _valid_steps_a_sample(actions_BHA: Tensor, is_pad_BH: Tensor | None, across_ranks: bool) -> Tensor:
    """What the loss is divided by: the mean number of valid action steps a sample.

    Ranks that divided by their own number would weigh a step by the rank it happened to fall on.
    """
    batch_size, horizon = actions_BHA.shape[:2]
    if is_pad_BH is None:
        return actions_BHA.new_tensor(float(horizon))
    steps = (~is_pad_BH).sum().float() / batch_size
    if across_ranks:
        steps = ranks.mean(steps)
    return steps.clamp(min=1.0 / batch_size)
