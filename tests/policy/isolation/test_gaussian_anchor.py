import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from aegis_policy.isolation import (
    AnchorError,
    GaussianAnchor,
    GradientIsolator,
    MomentAccumulator,
    NoiseAccumulator,
    global_moments,
    masked_moments,
    w2_cotangents,
    w2_squared,
)

L, B, T, D = 2, 3, 5, 4


@pytest.fixture
def hidden():
    torch.manual_seed(0)
    return [torch.randn(B, T, D, dtype=torch.float64, requires_grad=True) for _ in range(L)]


@pytest.fixture
def mask():
    return torch.arange(T) < torch.tensor([5, 2, 3])[:, None]


@pytest.fixture
def moments0():
    torch.manual_seed(1)
    return torch.randn(L, D, dtype=torch.float64), torch.rand(L, D, dtype=torch.float64) + 0.1


def anchor_loss(hidden, mask, moments0):
    return sum(
        w2_squared(*masked_moments(x, mask), mean0, std0)
        for x, mean0, std0 in zip(hidden, *moments0, strict=True)
    )


def test_w2_of_diagonal_gaussians_is_the_full_gaussian_formula():
    rng = np.random.default_rng(0)
    mean, mean0, std, std0 = rng.normal(size=D), rng.normal(size=D), rng.random(D), rng.random(D)
    cov, cov0 = np.diag(std**2), np.diag(std0**2)
    cross = scipy.linalg.sqrtm(scipy.linalg.sqrtm(cov0) @ cov @ scipy.linalg.sqrtm(cov0))
    expected = ((mean - mean0) ** 2).sum() + np.trace(cov + cov0 - 2 * cross.real)
    assert w2_squared(*map(torch.from_numpy, (mean, std, mean0, std0))).item() == pytest.approx(expected)


def test_the_cotangents_are_autograds_through_w2(hidden, mask, moments0):
    expected = torch.autograd.grad(anchor_loss(hidden, mask, moments0), hidden)
    cotangents = w2_cotangents(hidden, mask, global_moments(hidden, mask), *moments0)
    for cotangent, gradient in zip(cotangents, expected, strict=True):
        torch.testing.assert_close(cotangent, gradient, rtol=1e-12, atol=1e-14)
        assert (cotangent[~mask] == 0).all()


def test_the_cotangents_are_finite_differences_of_w2(hidden, mask, moments0):
    cotangents = w2_cotangents(hidden, mask, global_moments(hidden, mask), *moments0)
    step = 1e-5
    with torch.no_grad():
        for x, cotangent in zip(hidden, cotangents, strict=True):
            for index in range(0, x.numel(), 7):
                value = x.view(-1)[index].item()
                x.view(-1)[index] = value + step
                above = anchor_loss(hidden, mask, moments0)
                x.view(-1)[index] = value - step
                below = anchor_loss(hidden, mask, moments0)
                x.view(-1)[index] = value
                assert cotangent.view(-1)[index].item() == pytest.approx(
                    ((above - below) / (2 * step)).item(), rel=1e-6, abs=1e-9
                )


def test_bfloat16_hidden_states_get_bfloat16_cotangents_from_float32_moments(hidden, mask, moments0):
    rounded = [x.detach().bfloat16() for x in hidden]
    mean0, std0 = (each.float() for each in moments0)
    cotangents = w2_cotangents(rounded, mask, global_moments(rounded, mask), mean0, std0)
    exact = [x.double() for x in rounded]
    expected = w2_cotangents(exact, mask, global_moments(exact, mask), mean0.double(), std0.double())
    for cotangent, gradient in zip(cotangents, expected, strict=True):
        assert cotangent.dtype == torch.bfloat16
        torch.testing.assert_close(cotangent.double(), gradient, rtol=2**-8, atol=1e-6)


def test_an_anchor_is_made_from_one_accumulator_a_layer(hidden, mask):
    accumulators = [MomentAccumulator() for _ in hidden]
    for accumulator, x in zip(accumulators, hidden, strict=True):
        accumulator.update(x, mask)
    anchor = GaussianAnchor.from_accumulators(accumulators)
    moments = global_moments(hidden, mask)
    assert (anchor.num_layers, anchor.hidden_size, anchor.count) == (L, D, int(mask.sum()))
    torch.testing.assert_close(anchor.mean_LD, moments.mean_LD.float())
    torch.testing.assert_close(anchor.std_LD, moments.std_LD.float())


def test_an_anchor_cannot_be_made_from_values_that_are_not_finite():
    with pytest.raises(AnchorError, match="not finite"):
        GaussianAnchor(torch.full((L, D), torch.inf), torch.ones(L, D), count=1)


def test_the_noise_floor_is_the_distance_of_the_anchors_own_samples_to_it():
    """Batches of 8 drawn from what the anchor was made of, whose noise it knows from batches of 4."""
    torch.manual_seed(0)
    scale_D = torch.tensor([0.5, 1.0, 2.0, 4.0])
    layer, accumulator, noise = nn.Linear(4, 4), MomentAccumulator(), NoiseAccumulator()
    nn.init.eye_(layer.weight)

    def batch(samples):
        return torch.randn(samples, 5, 4) * scale_D + 1, torch.ones(samples, 5, dtype=torch.bool)

    for _ in range(500):
        x_BTD, mask_BT = batch(4)
        hidden = layer(x_BTD).detach()
        accumulator.update(hidden, mask_BT)
        noise.update(global_moments([hidden], mask_BT), len(mask_BT))
    exact = GaussianAnchor.from_accumulators([accumulator])
    anchor = GaussianAnchor(
        exact.mean_LD, exact.std_LD, exact.count, noise.noise(exact.mean_LD, exact.std_LD)
    )
    isolator = GradientIsolator([layer], anchor)
    distances = []
    for _ in range(400):
        x_BTD, mask_BT = batch(8)
        with isolator.collect(mask_BT):
            layer(x_BTD)
        distances.append(isolator.accumulate())
        isolator.clear()
    assert anchor.noise_floor(8) == pytest.approx(sum(distances) / len(distances), rel=0.15)
