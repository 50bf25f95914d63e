"""LeRobot's real-time chunking in our direction of flow time, against its formula in float64."""

import pytest
import torch
from lerobot.policies.rtc import RTCConfig, RTCProcessor
from torch import Tensor

from aegis_policy.model.flow_matching import euler_sample
from aegis_policy.model.real_time_chunking import guided_sample

B, H, A, STEPS = 2, 8, 3, 10
DELAY, HORIZON = 2, 5
LINEAR = torch.tensor([1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0], dtype=torch.float64)[:, None]
"""Full over what will have been carried out, then falling to nothing at the execution horizon."""


def field(x_BHA: Tensor, time_1: Tensor) -> Tensor:
    return 3.0 * time_1[:, None, None] - 0.3 * x_BHA


def by_hand(noise_BHA: Tensor, left_over_BHA: Tensor, largest: float) -> Tensor:
    """Algorithm 1 of arXiv 2506.07339 without the network's Jacobian, which LeRobot takes for the identity."""
    x_BHA = noise_BHA.double()
    for step in range(STEPS):
        time = step / STEPS
        velocity_BHA = 3.0 * time - 0.3 * x_BHA
        end_BHA = x_BHA + (1 - time) * velocity_BHA
        weight = ((1 - time) ** 2 + time**2) / (time * (1 - time)) if time else largest
        pull_BHA = min(weight, largest) * LINEAR * (left_over_BHA - end_BHA)
        x_BHA = x_BHA + (velocity_BHA + pull_BHA) / STEPS
    return x_BHA


@pytest.fixture
def drawn() -> tuple[Tensor, Tensor]:
    """Noise (B, H, A) and what is left over (B, HORIZON, A), far from where the field leads."""
    torch.manual_seed(0)
    return torch.randn(B, H, A), 5 + torch.randn(B, HORIZON, A)


def guided(noise_BHA: Tensor, left_over: Tensor, largest: float = 10.0) -> Tensor:
    processor = RTCProcessor(RTCConfig(max_guidance_weight=largest, execution_horizon=HORIZON))
    return guided_sample(
        field,
        noise_BHA,
        STEPS,
        processor=processor,
        left_over_PA=left_over,
        delay=DELAY,
        execution_horizon=None,
    )


@pytest.mark.parametrize("largest", [1.0, 3.0, 10.0])
def test_a_guided_chunk_is_that_of_the_papers_formula(drawn: tuple[Tensor, Tensor], largest: float) -> None:
    noise_BHA, left_over_BPA = drawn
    padded_BHA = torch.cat([left_over_BPA, torch.zeros(B, H - HORIZON, A)], dim=1).double()
    expected_BHA = by_hand(noise_BHA, padded_BHA, largest)
    torch.testing.assert_close(
        guided(noise_BHA, left_over_BPA, largest).double(), expected_BHA, rtol=1e-5, atol=1e-5
    )


def test_the_chunk_begins_with_what_is_left_over_and_ends_as_it_would(drawn: tuple[Tensor, Tensor]) -> None:
    noise_BHA, left_over_BPA = drawn
    plain_BHA, guided_BHA = euler_sample(field, noise_BHA, STEPS), guided(noise_BHA, left_over_BPA)
    before_P = (plain_BHA[:, :HORIZON] - left_over_BPA).abs().mean(dim=(0, 2))
    after_P = (guided_BHA[:, :HORIZON] - left_over_BPA).abs().mean(dim=(0, 2))
    assert (after_P[:DELAY] < 0.05 * before_P[:DELAY]).all() and (after_P < before_P).all()
    assert (after_P.diff()[DELAY - 1 :] > 0).all(), "drawn less and less"
    torch.testing.assert_close(guided_BHA[:, HORIZON:], plain_BHA[:, HORIZON:])


def test_one_rest_is_for_the_whole_batch(drawn: tuple[Tensor, Tensor]) -> None:
    noise_BHA, left_over_BPA = drawn
    alone_PA = left_over_BPA[0]
    torch.testing.assert_close(guided(noise_BHA, alone_PA), guided(noise_BHA, alone_PA.expand(B, -1, -1)))
