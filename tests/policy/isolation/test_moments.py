import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.isolation import EPS, MomentAccumulator, global_moments, masked_moments


def ragged_batch(seed: int, batch: int = 5, tokens: int = 7, hidden: int = 4):
    rng = np.random.default_rng(seed)
    x = rng.normal(loc=[0.0, 3.0, -200.0, 0.0], scale=[1.0, 0.1, 5.0, 0.0], size=(batch, tokens, hidden))
    mask = rng.random((batch, tokens)) < 0.6
    mask[0, 0] = True
    return torch.from_numpy(x), torch.from_numpy(mask)


def numpy_moments(x, mask):
    valid = x.numpy()[mask.numpy()]
    return valid.mean(0), np.sqrt(valid.var(0) + EPS), len(valid)


def test_masked_moments_are_numpys_over_the_valid_tokens():
    x, mask = ragged_batch(0)
    mean, std = masked_moments(x, mask)
    expected_mean, expected_std, _ = numpy_moments(x, mask)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-12)
    np.testing.assert_allclose(std, expected_std, rtol=1e-12)


def test_moments_of_bfloat16_are_computed_in_float32():
    x, mask = ragged_batch(1)
    x = x.bfloat16()
    mean, std = masked_moments(x, mask)
    expected_mean, expected_std, _ = numpy_moments(x.double(), mask)
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(std, expected_std, rtol=1e-5)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_never_reaches_moments_or_gradients(garbage):
    x, mask = ragged_batch(2)
    clean = x.masked_fill(~mask[..., None], 0.0)
    dirty = x.masked_fill(~mask[..., None], garbage).requires_grad_()
    for moments, expected in zip(masked_moments(dirty, mask), masked_moments(clean, mask), strict=True):
        assert torch.equal(moments, expected)
    (gradient,) = torch.autograd.grad(sum(m.sum() for m in masked_moments(dirty, mask)), dirty)
    assert gradient.isfinite().all()
    assert (gradient[~mask] == 0).all()


def test_the_deviations_gradient_is_finite_at_zero_variance():
    x = torch.ones(2, 3, 4, requires_grad=True)
    _, std = masked_moments(x, torch.ones(2, 3, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(std.sum(), x)
    assert gradient.isfinite().all()


def test_global_moments_of_one_process_are_the_masked_moments_of_each_layer():
    (x0, mask), (x1, _) = ragged_batch(3), ragged_batch(4)
    moments = global_moments([x0, x1], mask)
    assert moments.tokens == mask.sum()
    for layer, x in enumerate([x0, x1]):
        mean, std = masked_moments(x, mask)
        torch.testing.assert_close(moments.mean_LD[layer], mean)
        torch.testing.assert_close(moments.std_LD[layer], std)


@pytest.mark.parametrize("of_layer", [masked_moments, lambda x, mask: global_moments([x], mask)[1:]])
def test_a_deviation_far_below_its_mean_keeps_its_digits_in_float32(of_layer):
    """As in the outlier dimensions of a residual stream, where E[x^2] - E[x]^2 has none left."""
    x = (1000 + 0.1 * torch.randn(4, 50, 3, generator=torch.Generator().manual_seed(0))).float()
    mask = torch.ones(4, 50, dtype=torch.bool)
    _, std = of_layer(x, mask)
    _, expected, _ = numpy_moments(x.double(), mask)
    np.testing.assert_allclose(std.flatten(), expected, rtol=1e-3)


def test_a_streamed_deviation_far_below_its_mean_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    x = 1e6 + 1e-2 * torch.randn(40, 20, 3, generator=generator, dtype=torch.float64)
    mask = torch.ones(40, 20, dtype=torch.bool)
    accumulator = MomentAccumulator()
    for start in range(0, 40, 4):
        accumulator.update(x[start : start + 4], mask[start : start + 4])
    _, std, _ = accumulator.finalize()
    np.testing.assert_allclose(std, numpy_moments(x, mask)[1], rtol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=6), st.integers(0, 6))
def test_streamed_and_merged_moments_are_the_one_shot_moments(seeds, split):
    batches = [ragged_batch(seed) for seed in seeds]
    first, second = MomentAccumulator(), MomentAccumulator()
    for accumulator, part in ((first, batches[:split]), (second, batches[split:])):
        for x, mask in part:
            accumulator.update(x, mask)
    first.merge(second)
    mean, std, count = first.finalize()
    all_x, all_mask = (torch.cat(column) for column in zip(*batches, strict=True))
    expected_mean, expected_std, expected_count = numpy_moments(all_x, all_mask)
    assert mean.dtype == std.dtype == torch.float64
    assert count == expected_count
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(std, expected_std, rtol=1e-11)


def test_merging_leaves_the_other_accumulator_as_it_was():
    first, second = MomentAccumulator(), MomentAccumulator()
    second.update(*ragged_batch(0))
    before = second.finalize()
    first.merge(second)
    first.update(*ragged_batch(1))
    for value, expected in zip(second.finalize()[:2], before[:2], strict=True):
        assert torch.equal(value, expected)


def test_a_stream_without_valid_tokens_has_no_moments():
    accumulator = MomentAccumulator()
    accumulator.update(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="No valid token"):
        accumulator.finalize()
