"""Weights that are drawn back after the optimizer's step."""

import pytest
import torch
from torch import nn

from aegis_policy.isolation import DecoupledDecay, ProjectedAdamW, SelectiveProjectionDecay


def _moved(gradient: list[float], away: list[float], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A weight that is `away` from zero, with a gradient."""
    weight = nn.Parameter(torch.tensor(away, dtype=dtype))
    weight.grad = torch.tensor(gradient, dtype=dtype)
    return weight


def _spd(weight: nn.Parameter, strength: float = 1.0) -> SelectiveProjectionDecay:
    return SelectiveProjectionDecay({weight: torch.zeros_like(weight)}, {weight: strength})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoupled_decay_is_adamws_towards_the_pretrained_weights(dtype: torch.dtype) -> None:
    """AdamW on the way W - W0, with its own decay, is the reference; its decay comes before its step."""
    torch.manual_seed(0)
    start, gradients = torch.randn(4, 3).to(dtype), torch.randn(5, 4, 3).to(dtype)
    weight, way = nn.Parameter(start.clone()), nn.Parameter(torch.zeros(4, 3))
    ours = ProjectedAdamW(
        [weight], DecoupledDecay({weight: start.float()}, strength=20.0), lr=1e-2, weight_decay=0.0
    )
    reference = torch.optim.AdamW([way], lr=1e-2, weight_decay=0.0)
    for gradient in gradients:
        weight.grad, way.grad = gradient.clone(), gradient.float()
        ours.step()
        reference.step()
        way.data.mul_(1 - 1e-2 * 20.0)
    torch.testing.assert_close(
        weight.detach().float(),
        start.float() + way.detach(),
        rtol=0,
        atol=1e-6 if dtype.itemsize == 4 else 8e-3,
    )
    assert way.abs().max() > 0.02


def test_a_schedule_moves_the_decay_with_the_rate() -> None:
    weight = _moved([0.0], [1.0])
    optimizer = ProjectedAdamW(
        [weight], DecoupledDecay({weight: torch.zeros(1)}, 10.0), lr=0.01, weight_decay=0.0
    )
    for rate, value in ((0.01, 0.9), (0.0, 0.9), (0.001, 0.891), (1.0, 0.0)):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.zeros(1)
        optimizer.step()
        assert weight.item() == pytest.approx(value), "and never past the pretrained weight"


def test_what_a_step_does_not_reach_stays_and_nothing_is_drawn_back_twice() -> None:
    reached, other = _moved([0.0], [1.0]), nn.Parameter(torch.ones(1))
    decay = DecoupledDecay({reached: torch.zeros(1), other: torch.zeros(1)}, 10.0)
    optimizer = ProjectedAdamW([reached, other], decay, lr=0.01, weight_decay=0.0)
    optimizer.step()
    optimizer.hold_()  # as before a checkpoint
    assert reached.item() == pytest.approx(0.9) and other.item() == 1.0


def test_a_step_against_the_gradient_ends_on_the_sphere_it_began_on() -> None:
    weight = _moved(gradient=[1.0, 0.0], away=[3.0, 4.0])  # downhill is towards the pretrained weights
    decay = _spd(weight)
    decay.prepare()
    decay.project_()
    decay.remember()
    weight.data = torch.tensor([6.0, 8.0])  # momentum led on
    decay.hold_()
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0]))
    assert decay.metrics() == {"drawn_back": 1.0}
    decay.hold_()
    torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0]))


@pytest.mark.parametrize(
    ("gradient", "after"),
    [([-1.0, 0.0], [6.0, 8.0]), ([1.0, 0.0], [0.3, 0.4])],
    ids=["downhill leads away", "the step led back"],
)
def test_other_steps_are_left_as_they_are(gradient: list[float], after: list[float]) -> None:
    weight = _moved(gradient, away=[3.0, 4.0])
    decay = _spd(weight)
    decay.project_()
    decay.remember()
    weight.data = torch.tensor(after)
    decay.hold_()
    assert weight.tolist() == pytest.approx(after) and decay.metrics() == {"drawn_back": 0.0}


def test_no_strength_draws_past_the_pretrained_weights() -> None:
    weight = _moved(gradient=[1.0, 0.0], away=[0.1, 0.0])
    decay = _spd(weight, strength=4.0)
    decay.project_()
    decay.remember()
    weight.data = torch.tensor([1.0, 0.0])
    decay.hold_()
    assert weight.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_selective_projection_decay_in_an_optimizers_steps(dtype: torch.dtype) -> None:
    """The paper's rule in float64 beside it, on gradients that change their mind."""
    torch.manual_seed(1)
    start = torch.randn(6, 2).to(dtype)
    gradients = torch.randn(12, 6, 2).to(dtype)
    weight, reference = nn.Parameter(start.clone()), nn.Parameter(start.clone().double())
    ours = ProjectedAdamW(
        [weight],
        SelectiveProjectionDecay({weight: start.float()}, {weight: 0.7}),
        lr=1e-2,
        weight_decay=0.0,
    )
    plain = torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.0)
    drawn = []
    for gradient in gradients:
        weight.grad, reference.grad = gradient.clone(), gradient.double()
        away = reference.detach() - start.double()
        ours.step()
        plain.step()
        after = reference.detach() - start.double()
        strayed = float((after.norm() - away.norm()) / after.norm())
        drawn.append(bool((gradient.double() * away).sum() > 0) and strayed > 0)
        if drawn[-1]:
            reference.data -= 0.7 * strayed * after
    assert True in drawn and False in drawn, "both kinds of steps"
    torch.testing.assert_close(
        weight.detach().double(), reference.detach(), rtol=0, atol=1e-5 if dtype.itemsize == 4 else 8e-3
    )
