"""Penalties against the same written out, and what they hold."""

import pytest
import torch
from torch import nn

from aegis_policy.isolation import EPS, distance_penalty, weight_penalty


def away(setting):
    """A reference that the weights are away from, and uneven importances."""
    torch.manual_seed(3)
    parameters = dict(setting.model.layers.named_parameters())
    reference = {name: p.detach() + torch.randn_like(p) for name, p in parameters.items()}
    return parameters, reference, {name: torch.rand_like(p) for name, p in parameters.items()}


@pytest.mark.parametrize("weighted", [False, True])
def test_the_penalty_on_weights_is_half_the_weighted_squared_way(setting, weighted):
    parameters, reference, importance = away(setting)
    penalty = weight_penalty(parameters, reference, importance if weighted else None)
    expected = 0.0
    for name, p in parameters.items():
        factor = importance[name].double() if weighted else 1.0
        expected += 0.5 * float((factor * (p.detach().double() - reference[name].double()) ** 2).sum())
    assert penalty.item() == pytest.approx(expected, rel=1e-5)
    gradients = torch.autograd.grad(penalty, list(parameters.values()))
    for (name, p), gradient in zip(parameters.items(), gradients, strict=True):
        factor = importance[name] if weighted else 1.0
        torch.testing.assert_close(gradient, factor * (p - reference[name]).detach())


def test_a_strong_penalty_keeps_the_weights_and_spares_what_does_not_matter(make_setting):
    moved = {}
    for strength in (0.0, 100.0):
        setting = make_setting()
        parameters = dict(setting.model.layers.named_parameters())
        start = {name: p.detach().clone() for name, p in parameters.items()}
        importance = {name: torch.ones_like(p) for name, p in parameters.items()}
        spared = next(iter(parameters))
        importance[spared].zero_()
        optimizer = torch.optim.AdamW(setting.model.parameters(), lr=1e-3)
        for _ in range(30):
            optimizer.zero_grad()
            (setting.task_loss() + strength * weight_penalty(parameters, start, importance)).backward()
            optimizer.step()
        moved[strength] = {name: (p - start[name]).norm().item() for name, p in parameters.items()}
    held = [sum(each for name, each in moved[strength].items() if name != spared) for strength in moved]
    assert held[1] < 0.5 * held[0]
    assert moved[100.0][spared] > 0.5 * moved[0.0][spared]


def test_the_distance_penalty_has_the_value_and_the_gradient_of_the_distance(setting):
    def states() -> list[torch.Tensor]:
        x_BTD, hidden = setting.x_BTD, []
        for layer in setting.model.layers:
            (x_BTD,) = layer(x_BTD)
            hidden.append(x_BTD)
        return hidden

    parameters = list(setting.model.layers.parameters())
    penalty = distance_penalty(states(), setting.mask_BT, setting.anchor)
    written_out = torch.zeros(())
    for state, mean0, std0 in zip(states(), setting.anchor.mean_LD, setting.anchor.std_LD, strict=True):
        valid_ND = state[setting.mask_BT]
        std = (valid_ND.var(0, correction=0) + EPS).sqrt()
        written_out = written_out + (valid_ND.mean(0) - mean0).square().sum() + (std - std0).square().sum()
    torch.testing.assert_close(penalty, written_out)
    for ours, expected in zip(
        torch.autograd.grad(penalty, parameters), torch.autograd.grad(written_out, parameters), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_penalty_on_nothing_that_is_known_names_it(setting):
    with pytest.raises(KeyError, match="weight"):
        weight_penalty({"weight": nn.Parameter(torch.ones(2))}, {})
