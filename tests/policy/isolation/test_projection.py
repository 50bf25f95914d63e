import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchjd.aggregation import PCGrad

from aegis_policy.isolation import project_

SHAPES = [(5, 4), (4,), (2, 3, 3)]


def random_gradients(seed, scale=1.0, shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [
        (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes
    ]


def flat64(gradients):
    return torch.cat([gradient.flatten().double() for gradient in gradients])


def cosine(first, second):
    x, y = flat64(first), flat64(second)
    return (x @ y / (x.norm() * y.norm())).item()


def opposed(seed, angle, scale=1.0):
    """Task and anchor gradients whose cosine is `-cos(angle)`."""
    anchor, other = random_gradients(seed), random_gradients(seed + 1)
    a, o = flat64(anchor), flat64(other)
    o -= (o @ a) / (a @ a) * a
    task = scale * (math.sin(angle) * o / o.norm() - math.cos(angle) * a / a.norm())
    pieces = task.float().split([gradient.numel() for gradient in anchor])
    return [piece.view_as(g).clone() for piece, g in zip(pieces, anchor, strict=True)], anchor


def test_a_conflict_is_resolved_as_the_closed_form_says():
    task = [torch.tensor([3.0]), torch.tensor([-4.0])]
    result = project_(task, [torch.tensor([0.0]), torch.tensor([2.0])])
    assert [gradient.item() for gradient in task] == [3.0, 0.0]
    assert result.conflict
    assert result.usable
    assert (result.energy, result.shed) == (25.0, 16.0)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 2),
    task_scale=st.floats(1e-30, 1e30),
    anchor_scale=st.floats(1e-30, 1e30),
)
def test_after_projection_nothing_points_against_the_anchor(seed, task_scale, anchor_scale):
    task, anchor = random_gradients(seed, task_scale), random_gradients(seed + 1, anchor_scale)
    before = [gradient.clone() for gradient in task]
    result = project_(task, anchor)
    if cosine(before, anchor) < 0:
        assert result.conflict
        assert abs(cosine(task, anchor)) <= 1e-6
        assert flat64(task).norm() <= flat64(before).norm() * (1 + 1e-7)
    else:
        assert not result.conflict
        for gradient, expected in zip(task, before, strict=True):
            assert torch.equal(gradient.view(torch.int32), expected.view(torch.int32))


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 2), exponent=st.floats(-4, 0))
def test_nearly_opposite_gradients_come_out_orthogonal_too(seed, exponent):
    task, anchor = opposed(seed, angle=10**exponent)
    assert project_(task, anchor).conflict
    assert abs(cosine(task, anchor)) <= 1e-6


def test_an_exactly_opposite_gradient_leaves_nothing():
    anchor = random_gradients(0)
    task = [-3.3 * gradient for gradient in anchor]
    result = project_(task, anchor)
    assert all((gradient == 0).all() for gradient in task)
    assert result.shed.item() == pytest.approx(result.energy.item())


def test_negative_zeros_survive_where_there_is_no_conflict():
    task = [torch.tensor([-0.0, 1.0])]
    project_(task, [torch.tensor([-1.0, 1.0])])
    assert torch.equal(task[0].view(torch.int32), torch.tensor([-0.0, 1.0]).view(torch.int32))


@pytest.mark.parametrize("seed", range(6))
def test_the_task_side_is_pcgrads(seed):
    task = random_gradients(seed, dtype=torch.float64)
    anchor = random_gradients(seed + 100, dtype=torch.float64)
    if seed % 2:
        task = [gradient - 0.5 * other for gradient, other in zip(task, anchor, strict=True)]
    g, a = flat64(task), flat64(anchor)
    both_sides = PCGrad()(torch.stack([g, a]))
    anchor_side = a - torch.clamp(g @ a, max=0.0) / (g @ g) * g
    project_(task, anchor)
    torch.testing.assert_close(flat64(task), both_sides - anchor_side, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf")])
def test_an_anchor_gradient_without_a_direction_changes_nothing_and_is_reported(value):
    task = random_gradients(0)
    before = [gradient.clone() for gradient in task]
    result = project_(task, [torch.full_like(gradient, value) for gradient in task])
    assert not result.usable
    assert not result.conflict
    assert result.shed == 0
    for gradient, expected in zip(task, before, strict=True):
        assert torch.equal(gradient, expected)


def test_one_nan_in_the_anchor_gradient_spoils_the_layer_but_not_the_task():
    task, anchor = opposed(0, angle=1.0)
    before = [gradient.clone() for gradient in task]
    anchor[1][0] = torch.nan
    assert not project_(task, anchor).usable
    assert torch.equal(flat64(task), flat64(before))


def test_a_task_gradient_that_is_not_finite_stays_for_the_trainer_to_see():
    task, anchor = opposed(0, angle=1.0)
    task[0][0, 0] = -torch.inf
    result = project_(task, anchor)
    assert not result.conflict
    assert task[0][0, 0] == -torch.inf
    assert flat64(task).isnan().sum() == 0


def test_bfloat16_gradients_are_projected_in_float32_and_rounded_once():
    task, anchor = opposed(3, angle=1.0)
    task = [gradient.bfloat16() for gradient in task]
    g, a = flat64(task), flat64(anchor)
    project_(task, anchor)
    expected = g - (g @ a) / (a @ a) * a
    assert torch.equal(flat64(task), expected.bfloat16().double())


def test_a_layer_of_millions_of_parameters_is_as_orthogonal_as_a_small_one():
    torch.manual_seed(0)
    anchor = [torch.randn(2000, 1000), torch.randn(1_000_000)]
    task = [torch.randn_like(gradient) - 0.3 * gradient for gradient in anchor]
    assert project_(task, anchor).conflict
    assert abs(cosine(task, anchor)) <= 1e-6


def test_strided_gradients_are_written_in_place():
    storage, anchor = torch.ones(4, 3), [torch.eye(3, 4) - 1]
    task = [storage.t()]
    expected = flat64(task) - (flat64(task) @ flat64(anchor)) / flat64(anchor).square().sum() * flat64(anchor)
    project_(task, anchor)
    torch.testing.assert_close(storage.t().flatten().double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("task_scale", [1e-30, 1e-20, 1.0, 1e20, 1e30])
@pytest.mark.parametrize("anchor_scale", [1e-30, 1.0, 1e30])
def test_gradients_whose_squares_float32_cannot_hold_are_projected_as_any(task_scale, anchor_scale):
    task, anchor = opposed(0, angle=1.0, scale=task_scale)
    anchor = [anchor_scale * gradient for gradient in anchor]
    g, a = flat64(task), flat64(anchor)
    result = project_(task, anchor)
    expected = g - (g @ a) / (a @ a) * a
    assert result.conflict and result.usable
    assert (flat64(task) - expected).norm() < 1e-6 * expected.norm()
    assert result.energy.item() == pytest.approx(float(g @ g), rel=1e-5)
    assert (result.shed / result.energy).item() == pytest.approx(math.cos(1.0) ** 2, rel=1e-5)
