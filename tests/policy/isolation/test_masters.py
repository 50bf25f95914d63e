"""Weights in 16 bits: what learns is a float32 master, so that rounding leaves nothing in the blocks."""

import pickle

import pytest
import torch
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from torch import nn

from aegis_policy.isolation import LowRankProjector, ProjectedAdamW

D, E, K = 32, 24, 8
HALVES = [torch.bfloat16, torch.float16]


def layer(dtype: torch.dtype) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(D, E, bias=False).to(dtype)


def block() -> torch.Tensor:
    """A quarter of the input directions."""
    generator = torch.Generator().manual_seed(1)
    return torch.linalg.qr(torch.randn(D, K, generator=generator)).Q


def protected(linear: nn.Linear, lr: float = 1e-4, **options: float) -> ProjectedAdamW:
    return ProjectedAdamW([linear.weight], LowRankProjector({"0": linear}, {"0": block()}), lr=lr, **options)


def train(linear: nn.Linear, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        x = torch.randn(16, D).to(linear.weight.dtype)
        (linear(x).float() - x.float()[:, :E].flip(1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def blocked_energy(change: torch.Tensor) -> float:
    change = change.double()
    return float((change @ block().double()).square().sum() / change.square().sum())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("lr", "weight_decay"), [(1e-4, 0.0), (2.5e-5, 0.1)])
def test_nothing_of_300_steps_lies_in_the_block_at_the_rates_of_fine_tuning(dtype, lr, weight_decay):
    linear = layer(dtype)
    before = linear.weight.detach().clone()
    optimizer = protected(linear, lr, weight_decay=weight_decay)
    train(linear, optimizer, range(300))
    master = optimizer.state[linear.weight]["master"]
    assert blocked_energy(master - before.float()) < 1e-9
    assert torch.equal(linear.weight, master.to(dtype)) and linear.weight.dtype == dtype
    assert blocked_energy(linear.weight.detach().float() - before.float()) < 5e-3, "one rounding, not 300"
    assert optimizer.state[linear.weight]["exp_avg"].dtype == torch.float32


def test_the_master_is_what_a_float32_weight_would_be():
    half, whole = layer(torch.bfloat16), layer(torch.bfloat16).float()
    ours, reference = protected(half), protected(whole)
    for step in range(20):
        torch.manual_seed(step)
        whole.weight.grad = torch.randn(E, D).bfloat16().float()
        half.weight.grad = whole.weight.grad.bfloat16()
        ours.step()
        reference.step()
    assert torch.equal(ours.state[half.weight]["master"], whole.weight)


@pytest.mark.parametrize("way", ["state_dict", "pickle", "lerobot"])
def test_masters_and_whole_moments_come_back_from_a_checkpoint(tmp_path, way):
    straight = layer(torch.bfloat16)
    train(straight, optimizer := protected(straight), range(6))
    first = layer(torch.bfloat16)
    train(first, stopped := protected(first), range(3))
    second = layer(torch.bfloat16)
    second.load_state_dict(first.state_dict())
    resumed = protected(second)
    if way == "state_dict":
        resumed.load_state_dict(stopped.state_dict())
    elif way == "pickle":
        resumed.load_state_dict(pickle.loads(pickle.dumps(stopped)).state_dict())
    else:
        save_optimizer_state(stopped, tmp_path)
        load_optimizer_state(resumed, tmp_path)
    train(second, resumed, range(3, 6))
    masters = [each.state[p.weight]["master"] for each, p in ((optimizer, straight), (resumed, second))]
    torch.testing.assert_close(*masters, rtol=0, atol=1e-7)
    assert resumed.param_groups[0]["params"] == [second.weight]


def test_a_checkpoint_from_before_masters_goes_on_from_its_weights():
    linear = layer(torch.bfloat16)
    plain = torch.optim.AdamW([linear.weight], lr=1e-4)
    train(linear, plain, range(3))
    before = linear.weight.detach().clone()
    optimizer = protected(linear)
    optimizer.load_state_dict(plain.state_dict())
    train(linear, optimizer, range(3, 20))
    assert blocked_energy(optimizer.state[linear.weight]["master"] - before.float()) < 1e-9


def test_a_model_made_half_as_large_after_its_optimizer_goes_on_with_masters():
    linear = layer(torch.float32)
    before = linear.weight.detach().clone()
    optimizer = protected(linear)
    train(linear, optimizer, range(3))
    linear.to(torch.bfloat16)
    train(linear, optimizer, range(3, 100))
    assert linear.weight.dtype == torch.bfloat16
    assert blocked_energy(optimizer.state[linear.weight]["master"] - before.float()) < 1e-9


def test_weights_that_somebody_else_has_changed_are_where_the_master_goes_on():
    linear = layer(torch.bfloat16)
    optimizer = ProjectedAdamW([linear.weight], lr=1e-4)
    train(linear, optimizer, range(3))
    with torch.no_grad():
        linear.weight[0] = 5.0
    rest = optimizer.state[linear.weight]["master"][1:].clone()
    train(linear, optimizer, range(3, 4))
    master = optimizer.state[linear.weight]["master"]
    torch.testing.assert_close(master[0], torch.full((D,), 5.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(master[1:], rest, rtol=0, atol=3e-4)


def test_a_failed_step_moves_no_weight_and_leaves_the_groups_as_they_were(monkeypatch):
    linear = layer(torch.bfloat16)
    optimizer = protected(linear)
    train(linear, optimizer, range(2))
    before = linear.weight.detach().clone()
    linear.weight.grad = torch.ones_like(linear.weight)

    def broken(*args):
        raise OSError

    monkeypatch.setattr(optimizer.projectors[0], "hold_", broken)
    with pytest.raises(OSError):
        optimizer.step()
    assert torch.equal(linear.weight, before)
    assert optimizer.param_groups[0]["params"] == [linear.weight]
    assert optimizer.state.keys() == {linear.weight}


def test_a_step_inside_autocast_is_blocked_as_one_outside():
    linear = layer(torch.float32)
    before = linear.weight.detach().clone()
    optimizer = protected(linear)
    linear.weight.grad = torch.randn(E, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step()
    assert blocked_energy(linear.weight.detach() - before) < 1e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_gradient_that_is_not_finite_stops_before_a_weight_moves(value):
    linear, other = layer(torch.float32), nn.Linear(2, 2)
    optimizer = ProjectedAdamW(
        [{"params": [linear.weight], "name": "backbone"}, {"params": list(other.parameters())}],
        LowRankProjector({"0": linear}, {"0": block()}),
    )
    before = linear.weight.detach().clone()
    linear.weight.grad = torch.randn(E, D)
    linear.weight.grad[1, 2] = value
    with pytest.raises(RuntimeError, match=r"gradient of the backbone parameters is not finite.*no weight"):
        optimizer.step()
    assert torch.equal(linear.weight, before)
    linear.weight.grad = None
    other.bias.grad = torch.tensor([0.0, value])
    with pytest.raises(RuntimeError, match="gradient of the 1 parameters is not finite"):
        optimizer.step()
