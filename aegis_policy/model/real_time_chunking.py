"""Real-time chunking (arXiv 2506.07339): a chunk that goes on from what is left of the last one, by LeRobot's sampler.

LeRobot's flow time runs from 1 (noise) to 0 (actions), ours the other way: its time is 1 - t, its velocity ours with
the other sign.

Shapes: B batch, H action horizon, P steps that are left over, A action dimension.
"""

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.rtc import RTCProcessor
from torch import Tensor

from aegis_policy.model.flow_matching import Velocity


def real_actions(left_over_PA: Tensor) -> Tensor:
    """What is left over without the rows of zeros with which LeRobot's rollout makes it as long as its horizon.

    As actions they would be the mean pose. No sampled action is zero in every dimension.
    """
    rows_P = left_over_PA.ne(0).any(-1)
    rows_P = rows_P.any(0) if rows_P.ndim > 1 else rows_P
    return left_over_PA[..., : int(rows_P.nonzero().max()) + 1 if rows_P.any() else 0, :]


def guided_sample(
    velocity: Velocity,
    noise_BHA: Tensor,
    num_steps: int,
    *,
    processor: RTCProcessor,
    left_over_PA: Tensor,
    delay: int,
    execution_horizon: int | None,
) -> Tensor:
    """`euler_sample`, drawn to what is left over.

    Args:
        velocity: as `euler_sample` takes it.
        noise_BHA: where to start.
        num_steps: equal Euler steps.
        processor: how much it is drawn.
        left_over_PA: normalised actions of the last chunk (`real_actions`), from the one that is next to be carried
            out, (P, A) or (B, P, A), at most H.
        delay: how many of them will have been carried out when this chunk is there.
        execution_horizon: behind so many, nothing is drawn; by default, the processor's.
    """

    @torch.no_grad()
    def lerobots(x_BHA: Tensor, time_B: Tensor) -> Tensor:
        return -velocity(x_BHA, 1.0 - time_B[:1])

    return euler_integrate(
        lerobots,
        noise_BHA,
        num_steps,
        rtc_processor=processor,
        rtc_enabled=True,
        inference_delay=delay,
        prev_chunk_left_over=left_over_PA,
        execution_horizon=execution_horizon,
    )
