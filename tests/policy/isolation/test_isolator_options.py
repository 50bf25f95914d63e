"""What each option of the Gaussian anchor's isolator changes, against textbook formulas in float64."""

import copy
import math

import pytest
import torch
from torch import nn

from aegis_policy.isolation import (
    EPS,
    GaussianAnchor,
    GradientIsolator,
    MomentAccumulator,
    NoiseAccumulator,
    ProjectedAdamW,
    global_moments,
)


def hidden_states(model, x_BTD):
    states = []
    for layer in model.layers:
        (x_BTD,) = layer(x_BTD)
        states.append(x_BTD)
    return states


def moments(state, mask_BT):
    valid_ND = state[mask_BT]
    return valid_ND.mean(0), (valid_ND.var(0, correction=0) + EPS).sqrt()


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def step(setting, isolator, masks=None):
    with isolator.collect(*(masks or [setting.mask_BT])):
        loss = setting.task_loss()
    distance = isolator.accumulate()
    loss.backward()
    return distance


def task_gradient(setting, parameters):
    return torch.autograd.grad(setting.task_loss(), parameters)


def gram_schmidt(g, a):
    return g - min(g @ a, 0) / (a @ a) * a


def anchor_gradient(setting, parameters, distance):
    model = copy.deepcopy(setting.model).double()
    by_name = dict(model.named_parameters())
    names = {id(p): name for name, p in setting.model.named_parameters()}
    loss = distance(hidden_states(model, setting.x_BTD.double()))
    return loss.item(), torch.autograd.grad(loss, [by_name[names[id(p)]] for p in parameters])


def plain_distance(setting, anchor, mask_BT, precision=False):
    def distance(states):
        total = 0
        for state, mean0, std0 in zip(states, anchor.mean_LD.double(), anchor.std_LD.double(), strict=True):
            mean, std = moments(state, mask_BT)
            scale = std0 if precision else 1
            total = total + (((mean - mean0) / scale) ** 2).sum() + (((std - std0) / scale) ** 2).sum()
        return total

    return distance


def assert_close(ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * float(expected.norm()))


@pytest.mark.parametrize("granularity", ["layer", "tensor", "all"])
def test_granularity_is_what_one_projection_is_for(setting, granularity):
    isolator = GradientIsolator(setting.model.layers, setting.anchor, granularity=granularity)
    parameters = isolator.protected
    task = task_gradient(setting, parameters)
    _, anchor = anchor_gradient(setting, parameters, plain_distance(setting, setting.anchor, setting.mask_BT))
    step(setting, isolator)
    isolator.project_()
    size = {"tensor": 1, "layer": len(parameters) // 3, "all": len(parameters)}[granularity]
    for start in range(0, len(parameters), size):
        group = slice(start, start + size)
        expected = gram_schmidt(flat(task[group]), flat(anchor[group]))
        assert_close(flat(p.grad for p in parameters[group]), expected)


def test_whitening_divides_each_dimension_by_the_anchors_variance(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor, granularity="all", whiten=True)
    parameters = isolator.protected
    task = task_gradient(setting, parameters)
    expected_distance, anchor = anchor_gradient(
        setting, parameters, plain_distance(setting, setting.anchor, setting.mask_BT, precision=True)
    )
    assert step(setting, isolator) == pytest.approx(expected_distance, rel=1e-4)
    isolator.project_()
    assert_close(flat(p.grad for p in parameters), gram_schmidt(flat(task), flat(anchor)))


def test_groups_of_tokens_have_anchors_of_their_own_whose_distances_add_up(setting):
    first = setting.mask_BT & (torch.arange(6) < 1)
    rest = setting.mask_BT & ~first
    other = GaussianAnchor(setting.anchor.mean_LD + 1, setting.anchor.std_LD, 1)
    isolator = GradientIsolator(setting.model.layers, [setting.anchor, other], granularity="all")
    parameters = isolator.protected
    task = task_gradient(setting, parameters)
    parts = [plain_distance(setting, setting.anchor, first), plain_distance(setting, other, rest)]
    expected_distance, anchor = anchor_gradient(
        setting, parameters, lambda states: sum(part(states) for part in parts)
    )
    assert step(setting, isolator, [first, rest]) == pytest.approx(expected_distance, rel=1e-4)
    isolator.project_()
    assert_close(flat(p.grad for p in parameters), gram_schmidt(flat(task), flat(anchor)))


def test_a_mask_for_each_anchor_is_needed(setting):
    isolator = GradientIsolator(setting.model.layers, [setting.anchor, setting.anchor])
    with pytest.raises(ValueError, match="1 masks for 2 anchors"), isolator.collect(setting.mask_BT):
        pass


def test_a_moving_average_stands_in_for_the_batchs_moments(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor, granularity="all", momentum=0.75)
    parameters = isolator.protected
    averages = [moments(state, setting.mask_BT) for state in hidden_states(setting.model, setting.x_BTD)]
    step(setting, isolator)
    isolator.clear()
    setting.model.zero_grad()
    setting.x_BTD = setting.x_BTD * 1.5 + 0.3

    def distance(states):
        total = 0
        for state, average, mean0, std0 in zip(
            states, averages, setting.anchor.mean_LD.double(), setting.anchor.std_LD.double(), strict=True
        ):
            for old, new, target in zip(average, moments(state, setting.mask_BT), (mean0, std0), strict=True):
                total = total + ((0.75 * old.detach().double() + 0.25 * new - target) ** 2).sum()
        return total

    task = task_gradient(setting, parameters)
    expected_distance, anchor = anchor_gradient(setting, parameters, distance)
    assert step(setting, isolator) == pytest.approx(expected_distance, rel=1e-4)
    isolator.project_()
    assert_close(flat(p.grad for p in parameters), gram_schmidt(flat(task), flat(anchor)))


def test_moving_averages_continue_from_a_copy(make_setting):
    whole, resumed = make_setting(), make_setting()
    first = GradientIsolator(whole.model.layers, whole.anchor, momentum=0.9)
    step(whole, first)
    second = GradientIsolator(resumed.model.layers, resumed.anchor, momentum=0.9)
    for name, average in second.averages().items():
        average.copy_(first.averages()[name])
    whole.x_BTD = resumed.x_BTD = whole.x_BTD * 2
    first.clear()
    assert step(whole, first) == step(resumed, second)


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_noise_floor_is_the_distance_of_the_anchors_own_samples_to_it(momentum, whiten):
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
    isolator = GradientIsolator([layer], anchor, whiten=whiten, momentum=momentum)
    distances = []
    for _ in range(400):
        x_BTD, mask_BT = batch(8)
        with isolator.collect(mask_BT):
            layer(x_BTD)
        distances.append(isolator.accumulate())
        isolator.clear()
    settled = distances[20:]  # the average begins as one batch
    assert isolator.noise_floor(8) == pytest.approx(sum(settled) / len(settled), rel=0.15)


def test_a_lazy_anchor_gradient_is_kept_until_its_turn(make_setting):
    setting, fresh = make_setting(), make_setting()
    lazy = GradientIsolator(setting.model.layers, setting.anchor, refresh_every=3)
    optimizer = ProjectedAdamW(setting.model.parameters(), lazy, lr=1e-2)
    distances = []
    for _ in range(7):
        distances.append(step(setting, lazy))
        optimizer.step()
        optimizer.zero_grad()
    assert distances[0] == distances[1] == distances[2]
    assert distances[3] == distances[4] == distances[5]
    assert len(set(distances)) == 3
    eager = GradientIsolator(fresh.model.layers, fresh.anchor)
    assert step(fresh, eager) == distances[0]


def test_restoring_adds_a_multiple_of_the_anchor_gradient(setting):
    strength = 0.3
    isolator = GradientIsolator(setting.model.layers, setting.anchor, granularity="all", restoring=strength)
    parameters = isolator.protected
    task = task_gradient(setting, parameters)
    _, anchor = anchor_gradient(setting, parameters, plain_distance(setting, setting.anchor, setting.mask_BT))
    step(setting, isolator)
    isolator.project_()
    expected = gram_schmidt(flat(task), flat(anchor)) + strength * flat(anchor)
    assert_close(flat(p.grad for p in parameters), expected)


def test_the_projected_update_does_not_raise_the_distance_to_first_order(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor, acts_on="update")
    before = [p.detach().clone() for p in isolator.protected]
    optimizer = ProjectedAdamW(setting.model.parameters(), isolator, lr=1e-3, weight_decay=0.1)
    _, anchor = anchor_gradient(
        setting, isolator.protected, plain_distance(setting, setting.anchor, setting.mask_BT)
    )
    step(setting, isolator)
    optimizer.step()
    size = len(before) // 3
    conflicts = 0
    for start in range(0, len(before), size):
        group = slice(start, start + size)
        moved = flat(isolator.protected[group]) - flat(before[group])
        uphill = moved @ flat(anchor[group]) / (moved.norm() * flat(anchor[group]).norm())
        assert uphill < 1e-4
        conflicts += abs(uphill) < 1e-4
    assert conflicts > 0
    assert isolator.metrics()["conflict_fraction"] == pytest.approx(conflicts / 3)


def test_further_groups_are_projected_too(setting):
    """The first block stands for a vision tower: it has no anchor, but the others' hidden states depend on it."""
    anchor = GaussianAnchor(setting.anchor.mean_LD[1:], setting.anchor.std_LD[1:], 1)
    tower, *layers = setting.model.layers
    groups = [list(module.parameters()) for module in (*layers, tower)]
    isolator = GradientIsolator(layers, anchor, groups)
    task = task_gradient(setting, groups[-1])
    _, gradient = anchor_gradient(
        setting,
        groups[-1],
        lambda states: plain_distance(setting, anchor, setting.mask_BT)(states[1:]),
    )
    step(setting, isolator)
    isolator.project_()
    assert_close(flat(p.grad for p in groups[-1]), gram_schmidt(flat(task), flat(gradient)))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"granularity": "neuron"}, "granularity='neuron' is unknown"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"refresh_every": 0}, "refresh_every=0"),
        ({"restoring": -1.0}, "restoring=-1.0"),
        ({"restoring": 1.0, "acts_on": "update"}, "needs acts_on='gradient'"),
        ({"acts_on": "weights"}, "acts_on='weights' is unknown"),
    ],
)
def test_options_out_of_range_are_refused(setting, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        GradientIsolator(setting.model.layers, setting.anchor, **options)


def test_whitening_survives_dimensions_that_never_varied(setting):
    still = GaussianAnchor(setting.anchor.mean_LD, torch.zeros_like(setting.anchor.std_LD), 7)
    isolator = GradientIsolator(setting.model.layers, still, whiten=True)
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    assert math.isfinite(isolator.accumulate())
    assert all(grad.isfinite().all() for layer in isolator._anchor_grads.accumulated() for grad in layer)
