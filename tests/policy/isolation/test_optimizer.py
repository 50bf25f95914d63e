import copy
import pickle

import pytest
import torch
from accelerate import Accelerator

from aegis_policy.isolation import GradientIsolator, ProjectedAdamW

ADAMW = {"lr": 1e-2, "weight_decay": 0.1}


def make_optimizer(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    return ProjectedAdamW(setting.model.parameters(), isolator, **ADAMW)


def backward(setting, isolator):
    with isolator.collect(setting.mask_BT):
        loss = setting.task_loss()
    isolator.accumulate()
    loss.backward()
    return loss


def train(setting, optimizer, isolator, steps):
    """What a trainer does; `optimizer` may be a wrapper."""
    for _ in range(steps):
        backward(setting, isolator)
        optimizer.step()
        optimizer.zero_grad()


def assert_same_parameters(setting, other):
    for p, expected in zip(setting.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, expected)


def test_it_is_adamw_on_gradients_projected_by_hand(make_setting):
    ours, by_hand = make_setting(), make_setting()
    optimizer = make_optimizer(ours)
    train(ours, optimizer, optimizer.projectors[0], 5)

    isolator = GradientIsolator(by_hand.model.layers, by_hand.anchor)
    plain = torch.optim.AdamW(by_hand.model.parameters(), **ADAMW)
    conflicts = []
    for _ in range(5):
        backward(by_hand, isolator)
        isolator.project_()
        conflicts.append(isolator.metrics()["conflict_fraction"])
        plain.step()
        plain.zero_grad()
        isolator.clear()
    assert_same_parameters(ours, by_hand)
    assert max(conflicts) > 0


def test_protection_changes_the_backbone_but_not_the_first_step_of_the_head(make_setting):
    ours, unprotected = make_setting(), make_setting()
    optimizer = make_optimizer(ours)
    train(ours, optimizer, optimizer.projectors[0], 1)
    plain = torch.optim.AdamW(unprotected.model.parameters(), **ADAMW)
    unprotected.task_loss().backward()
    plain.step()
    assert torch.equal(ours.model.head.weight, unprotected.model.head.weight)
    assert not all(
        torch.equal(p, q)
        for p, q in zip(ours.model.layers.parameters(), unprotected.model.layers.parameters(), strict=True)
    )


def test_a_run_continued_from_a_state_dict_ends_where_the_uninterrupted_one_does(make_setting):
    whole, halves = make_setting(), make_setting()
    optimizer = make_optimizer(whole)
    train(whole, optimizer, optimizer.projectors[0], 6)

    first = make_optimizer(halves)
    train(halves, first, first.projectors[0], 3)
    state = copy.deepcopy(first.state_dict())
    second = make_optimizer(halves)
    second.load_state_dict(state)
    train(halves, second, second.projectors[0], 3)
    assert_same_parameters(halves, whole)


def test_its_state_dict_is_adamws(setting):
    optimizer = make_optimizer(setting)
    train(setting, optimizer, optimizer.projectors[0], 1)
    plain = torch.optim.AdamW(setting.model.parameters(), **ADAMW)
    plain.load_state_dict(optimizer.state_dict())
    assert plain.state_dict().keys() == optimizer.state_dict().keys()
    assert plain.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_a_closure_runs_before_the_projection(make_setting):
    ours, closed = make_setting(), make_setting()
    optimizer = make_optimizer(ours)
    train(ours, optimizer, optimizer.projectors[0], 1)
    with_closure = make_optimizer(closed)
    loss = with_closure.step(lambda: backward(closed, with_closure.projectors[0]).item())
    assert isinstance(loss, float)
    assert_same_parameters(ours, closed)


def test_accelerates_wrapper_steps_and_saves_as_without_it(make_setting):
    plain, wrapped = make_setting(), make_setting()
    optimizer = make_optimizer(plain)
    train(plain, optimizer, optimizer.projectors[0], 3)

    inner = make_optimizer(wrapped)
    accelerated = Accelerator(cpu=True).prepare(inner)
    train(wrapped, accelerated, inner.projectors[0], 3)
    assert_same_parameters(wrapped, plain)
    accelerated.load_state_dict(accelerated.state_dict())
    train(wrapped, accelerated, inner.projectors[0], 1)


def test_a_step_that_the_gradient_scaler_skipped_leaves_no_anchor_gradient_behind(make_setting):
    setting, untouched = make_setting(), make_setting()
    optimizer = make_optimizer(setting)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with optimizer.projectors[0].collect(setting.mask_BT):
        loss = setting.task_loss()
    optimizer.projectors[0].accumulate()
    scaler.scale(loss * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert_same_parameters(setting, untouched)
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="no anchor gradient"):
        optimizer.projectors[0].project_()
    train(setting, optimizer, optimizer.projectors[0], 1)


def test_a_step_without_an_anchor_gradient_is_an_error_and_moves_nothing(make_setting):
    setting, untouched = make_setting(), make_setting()
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    optimizer = ProjectedAdamW(setting.model.parameters(), isolator, **ADAMW)
    setting.task_loss().backward()
    with pytest.raises(RuntimeError, match="would be unprotected"):
        optimizer.step()
    assert_same_parameters(setting, untouched)


def test_pickling_keeps_the_state_and_says_that_the_projectors_are_gone(setting):
    optimizer = make_optimizer(setting)
    train(setting, optimizer, optimizer.projectors[0], 1)
    unpickled = pickle.loads(pickle.dumps(optimizer))
    assert unpickled.projectors is None
    unpickled.zero_grad()
    with pytest.raises(RuntimeError, match="has no projectors"):
        unpickled.step()
    fresh = make_optimizer(setting)
    fresh.load_state_dict(unpickled.state_dict())
    train(setting, fresh, fresh.projectors[0], 1)
