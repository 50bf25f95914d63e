import copy

import pytest
import torch
from torch import nn

from aegis_policy.isolation import EPS, AnchorError, GaussianAnchor, GradientIsolator


def run_step(setting, isolator):
    """Collect, accumulate and take the task's backward; the next thing would be the optimizer."""
    with isolator.collect(setting.mask_BT):
        loss = setting.task_loss()
    distance = isolator.accumulate()
    loss.backward()
    return distance


def hidden_states(model, x_BTD):
    states = []
    for layer in model.layers:
        (x_BTD,) = layer(x_BTD)
        states.append(x_BTD)
    return states


def reference(setting):
    """Anchor loss, task and anchor gradients by layer in float64, by autograd through textbook formulas."""
    model = copy.deepcopy(setting.model).double()
    x_BTD, mask_BT = setting.x_BTD.double(), setting.mask_BT
    states = hidden_states(model, x_BTD)
    anchor_loss = torch.zeros((), dtype=torch.float64)
    for state, mean0, std0 in zip(states, setting.anchor.mean_LD, setting.anchor.std_LD, strict=True):
        valid_ND = state[mask_BT]
        std = (valid_ND.var(0, correction=0) + EPS).sqrt()
        anchor_loss = anchor_loss + ((valid_ND.mean(0) - mean0) ** 2).sum() + ((std - std0) ** 2).sum()
    task_loss = (model.head(states[-1])[mask_BT] - 1).square().mean()
    layers = [list(layer.parameters()) for layer in model.layers]
    task, anchor = (
        [torch.autograd.grad(loss, layer, retain_graph=True) for layer in layers]
        for loss in (task_loss, anchor_loss)
    )
    return anchor_loss.item(), task, anchor


def flat(gradients):
    return torch.cat([gradient.double().flatten() for gradient in gradients])


def gram_schmidt(g, a):
    return g - min(g @ a, 0) / (a @ a) * a


def grads(setting):
    return [flat(p.grad for p in layer.parameters()) for layer in setting.model.layers]


@pytest.mark.parametrize("seed", range(5))
def test_a_step_is_the_float64_reference(make_setting, seed):
    setting = make_setting(seed=seed)
    distance, task, anchor = reference(setting)
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    assert run_step(setting, isolator) == pytest.approx(distance, rel=1e-5)
    isolator.project_()
    expected = [gram_schmidt(flat(t), flat(a)) for t, a in zip(task, anchor, strict=True)]
    for gradient, wanted in zip(grads(setting), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item())

    conflicts = [(flat(t) @ flat(a) < 0).item() for t, a in zip(task, anchor, strict=True)]
    before = sum(flat(t).square().sum() for t in task)
    after = sum(wanted.square().sum() for wanted in expected)
    assert isolator.metrics() == {
        "anchor_distance": pytest.approx(distance, rel=1e-5),
        "conflict_fraction": pytest.approx(sum(conflicts) / len(conflicts)),
        "energy_shed": pytest.approx((1 - after / before).item(), rel=1e-3, abs=1e-6),
        "unprojected_layers": 0.0,
    }


def test_layers_in_conflict_become_orthogonal_and_the_others_stay_bit_for_bit(make_setting):
    seen = set()
    for seed in range(8):
        setting = make_setting(seed=seed)
        isolator = GradientIsolator(setting.model.layers, setting.anchor)
        run_step(setting, isolator)
        before = grads(setting)
        isolator.project_()
        _, task, anchor = reference(setting)
        for old, new, t, layer in zip(before, grads(setting), task, anchor, strict=True):
            a = flat(layer)
            conflict = bool(flat(t) @ a < 0)
            seen.add(conflict)
            if conflict:
                assert abs(new @ a / (new.norm() * a.norm())) < 1e-5  # `a` itself is known to float32 here
                assert new.norm() < old.norm()
            else:
                assert torch.equal(new, old)
    assert seen == {True, False}


def test_accumulate_leaves_the_task_gradients_alone(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    isolator.accumulate()
    assert all(p.grad is None for p in setting.model.parameters())


def test_clipping_before_the_projection_only_scales_the_result(make_setting):
    plain, clipped = make_setting(), make_setting()
    for setting in (plain, clipped):
        isolator = GradientIsolator(setting.model.layers, setting.anchor)
        run_step(setting, isolator)
        if setting is clipped:
            norm = nn.utils.clip_grad_norm_(setting.model.parameters(), 1e-2)
        isolator.project_()
    for gradient, expected in zip(grads(clipped), grads(plain), strict=True):
        torch.testing.assert_close(gradient, expected * (1e-2 / norm), rtol=1e-4, atol=1e-9)


def test_checkpointed_layers_give_the_same_gradients(make_setting, checkpointed_block):
    results = []
    for setting in (make_setting(), make_setting(checkpointed_block)):
        isolator = GradientIsolator(setting.model.layers, setting.anchor)
        distance = run_step(setting, isolator)
        isolator.project_()
        results.append((distance, grads(setting)))
    (distance, gradients), (checkpointed_distance, checkpointed_gradients) = results
    assert checkpointed_distance == distance
    for gradient, expected in zip(checkpointed_gradients, gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_recomputation_inside_the_block_collects_nothing_twice(make_setting, checkpointed_block):
    setting = make_setting(checkpointed_block)
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        loss = setting.task_loss()
        distance = isolator.accumulate()
        loss.backward()
        with pytest.raises(RuntimeError, match="No hidden states"):
            isolator.accumulate()
    assert distance == pytest.approx(reference(setting)[0], rel=1e-5)


def test_reentrant_checkpointing_is_refused_because_it_hides_the_graph(make_setting, checkpointed_block):
    class Reentrant(checkpointed_block):
        use_reentrant = True

    setting = make_setting(Reentrant)
    setting.x_BTD.requires_grad_()
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        isolator.accumulate()


def test_anchor_gradients_add_up_over_micro_batches(make_setting):
    first, second = make_setting(seed=0), make_setting(seed=1)
    second.model, second.anchor = first.model, first.anchor
    isolator = GradientIsolator(first.model.layers, first.anchor)
    for setting in (first, second):
        run_step(setting, isolator)
    isolator.project_()
    (_, task0, anchor0), (_, task1, anchor1) = reference(first), reference(second)
    for gradient, *parts in zip(grads(first), task0, task1, anchor0, anchor1, strict=True):
        t0, t1, a0, a1 = map(flat, parts)
        expected = gram_schmidt(t0 + t1, a0 + a1)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def test_what_a_projection_has_used_is_no_part_of_the_next_step(make_setting):
    """Whoever sets gradients to None by hand clears nothing."""
    setting, fresh = make_setting(), make_setting()
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    isolator.project_()
    setting.model.zero_grad()
    setting.x_BTD = fresh.x_BTD = 2 * setting.x_BTD
    run_step(setting, isolator)
    other = GradientIsolator(fresh.model.layers, fresh.anchor)
    run_step(fresh, other)
    for each in (isolator, other):
        each.project_()
    for ours, expected in zip(grads(setting), grads(fresh), strict=True):
        assert torch.equal(ours, expected)


def test_clear_forgets_the_steps_anchor_gradients(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    isolator.clear()
    with pytest.raises(RuntimeError, match="no anchor gradient"):
        isolator.project_()


def test_bfloat16_autocast_projects_about_the_same_way(make_setting):
    exact, mixed = make_setting(), make_setting()
    results = []
    for setting in (exact, mixed):
        isolator = GradientIsolator(setting.model.layers, setting.anchor)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting is mixed):
            with isolator.collect(setting.mask_BT):
                loss = setting.task_loss()
            distance = isolator.accumulate()
        loss.backward()
        isolator.project_()
        results.append((distance, torch.cat(grads(setting))))
    (distance, gradient), (mixed_distance, mixed_gradient) = results
    assert mixed_distance == pytest.approx(distance, rel=2e-2)
    assert torch.cosine_similarity(gradient, mixed_gradient, dim=0) > 0.999


def test_a_bfloat16_model_accumulates_its_anchor_gradients_in_float32(setting):
    setting.model.bfloat16()
    setting.x_BTD = setting.x_BTD.bfloat16()
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    assert {view.dtype for layer in isolator._anchor_grads.reduce() for view in layer} == {torch.float32}
    isolator.project_()
    assert all(p.grad.dtype == torch.bfloat16 for p in setting.model.parameters())


def test_a_parameter_without_task_gradient_stays_without(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    unused = setting.model.layers[0].up.weight
    unused.grad = None
    _, task, anchor = reference(setting)
    isolator.project_()
    assert unused.grad is None
    rest = [index for index, p in enumerate(setting.model.layers[0].parameters()) if p is not unused]
    expected = gram_schmidt(flat(task[0][i] for i in rest), flat(anchor[0][i] for i in rest))
    gradient = flat(p.grad for p in setting.model.layers[0].parameters() if p is not unused)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6 * expected.abs().max().item())


def test_a_parameter_without_anchor_gradient_keeps_its_task_gradient(setting):
    setting.model.layers[1].register_parameter("idle", nn.Parameter(torch.ones(3)))
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    setting.model.layers[1].idle.grad = torch.tensor([1.0, -2.0, 3.0])
    isolator.project_()
    assert setting.model.layers[1].idle.grad.tolist() == [1.0, -2.0, 3.0]


def test_a_layer_without_task_gradient_is_no_conflict(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    isolator.accumulate()
    isolator.project_()
    assert all(p.grad is None for p in setting.model.parameters())
    assert isolator.metrics()["conflict_fraction"] == 0.0


def test_a_tied_parameter_belongs_to_its_first_layer_only(setting):
    first, second, _ = setting.model.layers
    second.down.weight = first.down.weight
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    owners = [[p is first.down.weight for p in layer].count(True) for layer in isolator.parameters]
    assert owners == [1, 0, 0]
    run_step(setting, isolator)
    isolator.project_()


def test_frozen_parameters_are_left_out_but_their_layers_still_count_in_the_distance(setting):
    setting.model.layers[0].requires_grad_(False)
    setting.model.layers[1].up.requires_grad_(False)
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    distance = run_step(setting, isolator)
    isolator.project_()
    assert [len(layer) for layer in isolator.parameters] == [0, 3, 5]
    assert all(p.grad is None for p in setting.model.layers[0].parameters())
    setting.model.requires_grad_()
    assert distance == pytest.approx(reference(setting)[0], rel=1e-5)


def test_further_groups_are_projected_too(setting):
    """The first block stands for a vision tower: it has no anchor, but the others' hidden states depend on it."""
    anchor = GaussianAnchor(setting.anchor.mean_LD[1:], setting.anchor.std_LD[1:], 1)
    tower, *layers = setting.model.layers
    isolator = GradientIsolator(layers, anchor, [list(module.parameters()) for module in (*layers, tower)])
    twin = copy.deepcopy(setting)
    twin.model.double()
    distance = 0
    for state, mean0, std0 in zip(
        hidden_states(twin.model, setting.x_BTD.double())[1:], anchor.mean_LD, anchor.std_LD, strict=True
    ):
        valid_ND = state[setting.mask_BT]
        std = (valid_ND.var(0, correction=0) + EPS).sqrt()
        distance = distance + ((valid_ND.mean(0) - mean0) ** 2).sum() + ((std - std0) ** 2).sum()
    uphill = flat(torch.autograd.grad(distance, list(twin.model.layers[0].parameters())))
    assert run_step(setting, isolator) == pytest.approx(distance.item(), rel=1e-5)
    task = flat(p.grad for p in tower.parameters())
    isolator.project_()
    wanted = gram_schmidt(task, uphill)
    torch.testing.assert_close(
        flat(p.grad for p in tower.parameters()), wanted, rtol=1e-4, atol=1e-6 * wanted.abs().max().item()
    )


def test_only_the_named_parameters_are_projected(make_setting):
    whole, part = make_setting(), make_setting()
    named = [[layer.up.weight] for layer in part.model.layers]
    isolator = GradientIsolator(part.model.layers, part.anchor, named)
    whole.task_loss().backward()
    run_step(part, isolator)
    isolator.project_()
    assert isolator.metrics()["conflict_fraction"] > 0
    for (name, p), expected in zip(part.model.named_parameters(), whole.model.parameters(), strict=True):
        if "up.weight" not in name:
            assert torch.equal(p.grad, expected.grad)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_layers_whose_anchor_gradient_has_no_direction_are_counted(setting, value):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    run_step(setting, isolator)
    for view in isolator._anchor_grads.reduce()[1]:
        view.fill_(value)
    before = grads(setting)[1]
    isolator.project_()
    assert torch.equal(grads(setting)[1], before)
    assert isolator.metrics()["unprojected_layers"] == 1.0


def test_metrics_have_the_same_keys_before_the_first_step(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    before = isolator.metrics()
    run_step(setting, isolator)
    isolator.project_()
    after = isolator.metrics()
    assert before.keys() == after.keys()
    assert set(before.values()) == {0.0}
    assert all(type(value) is float for value in after.values())


def test_hooks_are_gone_after_the_block_even_if_it_fails(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with pytest.raises(KeyError), isolator.collect(setting.mask_BT):
        setting.task_loss()
        raise KeyError
    assert not any(layer._forward_hooks for layer in setting.model.layers)
    with pytest.raises(RuntimeError, match="No hidden states"):
        isolator.accumulate()


def test_accumulate_without_a_forward_pass_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        pass
    setting.task_loss()
    with pytest.raises(RuntimeError, match=r"run the forward pass inside collect\(mask\)"):
        isolator.accumulate()


def test_a_forward_pass_without_gradients_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT), torch.no_grad():
        setting.task_loss()
    with pytest.raises(RuntimeError, match="layer 0 need no gradient, so it would be unprotected"):
        isolator.accumulate()


def test_a_layer_that_did_not_run_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        setting.model.layers[0](setting.x_BTD)
    with pytest.raises(RuntimeError, match=r"Layers \[1, 2\] did not run"):
        isolator.accumulate()


def test_two_forward_passes_in_one_block_are_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with pytest.raises(RuntimeError, match="ran twice"), isolator.collect(setting.mask_BT):
        setting.task_loss()
        setting.task_loss()


def test_a_layer_that_the_graph_does_not_reach_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor, [[nn.Parameter(torch.ones(2))], [], []])
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    with pytest.raises(RuntimeError, match="reached no parameter of layer 0"):
        isolator.accumulate()


def test_a_mask_of_another_shape_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT[:, :-1]):
        setting.task_loss()
    with pytest.raises(ValueError, match=r"shape \(4, 6, 8\), which does not fit a mask of shape \(4, 5\)"):
        isolator.accumulate()


def test_an_anchor_of_another_width_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, GaussianAnchor(torch.ones(3, 9), torch.ones(3, 9), 1))
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    with pytest.raises(ValueError, match="anchor of size 9"):
        isolator.accumulate()


def test_a_batch_of_nothing_but_padding_is_an_error(setting):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(torch.zeros_like(setting.mask_BT)):
        setting.task_loss()
    with pytest.raises(ValueError, match="no valid token"):
        isolator.accumulate()


def test_an_anchor_of_another_depth_is_an_error(setting):
    with pytest.raises(AnchorError, match="describes 3 layers but the model has 2"):
        GradientIsolator(setting.model.layers[:2], setting.anchor)


def test_nothing_to_protect_is_an_error(setting):
    setting.model.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to protect"):
        GradientIsolator(setting.model.layers, setting.anchor)


def test_parameters_for_another_number_of_layers_are_an_error(setting):
    with pytest.raises(ValueError, match="1 entries for 3 layers"):
        GradientIsolator(setting.model.layers, setting.anchor, [[]])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e25])
def test_the_cosine_does_not_depend_on_a_gradients_length(setting, scale):
    isolator = GradientIsolator(setting.model.layers, setting.anchor)
    with isolator.collect(setting.mask_BT):
        setting.task_loss()
    isolator.accumulate()
    gradients = [grad for layer in isolator._anchor_grads.accumulated() for grad in layer]
    own = {id(p): grad for p, grad in zip(isolator.protected, gradients, strict=True)}
    assert float(isolator.cosine(lambda p: scale * own[id(p)])) == pytest.approx(float(scale > 0), abs=1e-5)
