"""Conditional flow matching: the path, the loss and the sampler, as pure functions.

Flow time runs from 0 (noise) to 1 (an action chunk) on straight lines, as in flow matching (arXiv
2210.02747) and rectified flow (arXiv 2209.03003):

    x_t = (1 - t) * noise + t * actions,        dx_t/dt = actions - noise.

Training times follow pi0 (arXiv 2410.24164, appendix B): most of them lie near the noise, where the hard
part is.

Shapes: B batch, H action horizon, A action dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x_BHA, time) -> velocity_BHA; time is (1,), the same for all samples."""
Sampler = Callable[[Velocity, Tensor, int], Tensor]
"""(velocity, noise_BHA, num_steps) -> actions_BHA."""


def sample_times(batch_size: int, alpha: float, beta: float, max_time: float) -> Tensor:
    """Draw training times (batch_size,) in [0, max_time] with (max_time - t) / max_time ~ Beta(alpha, beta)."""
    concentration = torch.tensor([alpha, beta], dtype=torch.float32)
    share_B = torch.distributions.Beta(*concentration).sample((batch_size,))
    return max_time * (1.0 - share_B)


def interpolate(noise_BHA: Tensor, actions_BHA: Tensor, time_B: Tensor) -> Tensor:
    """The point x_t (B, H, A) of the straight path at each sample's time."""
    time_B11 = time_B[:, None, None].to(actions_BHA.dtype)
    return (1.0 - time_B11) * noise_BHA + time_B11 * actions_BHA


def target_velocity(noise_BHA: Tensor, actions_BHA: Tensor) -> Tensor:
    """The path's velocity (B, H, A), constant in time."""
    return actions_BHA - noise_BHA


def sample_losses(velocity_BHA: Tensor, target_BHA: Tensor, is_pad_BH: Tensor | None) -> Tensor:
    """Squared velocity error of each sample (B,), in float32: summed over its valid steps, averaged over A.

    Padded steps (`is_pad_BH` true: the chunk reaches beyond the episode's end) contribute nothing.
    """
    error_BH = (velocity_BHA.float() - target_BHA.float()).square().mean(dim=-1)
    if is_pad_BH is not None:
        error_BH = error_BH.masked_fill(is_pad_BH, 0.0)
    return error_BH.sum(dim=-1)


def euler_sample(velocity: Velocity, noise_BHA: Tensor, num_steps: int) -> Tensor:
    """Integrate dx/dt = velocity(x, t) from t = 0 to t = 1 in `num_steps` equal explicit Euler steps."""
    x_BHA = noise_BHA
    for step in range(num_steps):
        time_1 = torch.full((1,), step / num_steps, device=noise_BHA.device)
        x_BHA = x_BHA + velocity(x_BHA, time_1) / num_steps
    return x_BHA
