"""The path, the loss and the sampler against closed forms."""

import pytest
import torch
from scipy import stats

from aegis_policy.model import flow_matching


def test_path_starts_at_noise_ends_at_actions_and_moves_with_the_target_velocity() -> None:
    noise, actions = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)

    def at(time: float) -> torch.Tensor:
        return flow_matching.interpolate(noise, actions, torch.full((2,), time, dtype=torch.float64))

    torch.testing.assert_close(at(0.0), noise)
    torch.testing.assert_close(at(1.0), actions)
    slope = (at(0.7) - at(0.2)) / 0.5
    torch.testing.assert_close(slope, flow_matching.target_velocity(noise, actions))


def test_each_sample_is_at_its_own_time() -> None:
    noise, actions = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    x = flow_matching.interpolate(noise, actions, torch.tensor([0.25, 0.75]))
    assert x.flatten().tolist() == [0.25, 0.75]


def test_times_follow_the_beta_distribution_of_pi0() -> None:
    torch.manual_seed(0)
    times = flow_matching.sample_times(4000, alpha=1.5, beta=1.0, max_time=0.999)
    assert times.min() >= 0.0 and times.max() <= 0.999
    shares = ((0.999 - times) / 0.999).double().numpy()
    assert stats.kstest(shares, stats.beta(1.5, 1.0).cdf).pvalue > 0.01


def test_euler_is_exact_where_the_velocity_is_constant() -> None:
    noise, actions = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    constant = flow_matching.target_velocity(noise, actions)
    for steps in (1, 10):
        torch.testing.assert_close(flow_matching.euler_sample(lambda x, t: constant, noise, steps), actions)


def test_euler_follows_a_linear_field_to_its_discrete_solution() -> None:
    noise = torch.randn(2, 3, 4, dtype=torch.float64)

    def field(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return -2.0 * x + time[:, None, None]

    expected = noise.clone()
    for step in range(5):
        expected = expected * (1 - 2.0 / 5) + (step / 5) / 5
    torch.testing.assert_close(flow_matching.euler_sample(field, noise, 5), expected)


def test_euler_transports_one_gaussian_to_another() -> None:
    """The velocity between N(0, 1) and a point mass is (target - x) / (1 - t): every path ends there."""
    target = torch.full((64, 1, 1), 3.0)

    def field(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return (target - x) / (1 - time[:, None, None])

    torch.testing.assert_close(flow_matching.euler_sample(field, torch.randn(64, 1, 1), 10), target)


def test_padded_steps_do_not_count() -> None:
    velocity, target = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    is_pad = torch.tensor([[False, False, True, True], [False] * 4])
    losses = flow_matching.sample_losses(velocity, target, is_pad)
    velocity[0, 2:] = torch.nan
    torch.testing.assert_close(flow_matching.sample_losses(velocity, target, is_pad), losses)
    by_hand = [
        (velocity[0, :2] - target[0, :2]).square().mean(-1).sum(),
        (velocity[1] - target[1]).square().mean(-1).sum(),
    ]
    assert losses.tolist() == pytest.approx([each.item() for each in by_hand])
