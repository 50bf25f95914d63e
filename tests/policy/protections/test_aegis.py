"""What the anchors of `aegis` leave of a step, and what they say about it."""

from typing import Any

import numpy as np
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.isolation import (
    GradientIsolator,
    LowRankProjector,
    ProjectedAdamW,
    select_blocks,
)
from aegis_policy.vlm.prompts import NO_LABEL


def _flat_gradients(isolator: GradientIsolator) -> list[torch.Tensor]:
    return [
        torch.cat([p.grad.flatten() for p in layer if p.grad is not None]) for layer in isolator.parameters
    ]


def test_projected_gradients_are_orthogonal_to_the_anchor_gradient_or_untouched(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis")
    optimizer = build_optimizer(policy)
    assert isinstance(optimizer, ProjectedAdamW)
    (isolator,) = policy.protection.projectors
    assert isinstance(isolator, GradientIsolator)
    conflicts = 0
    for seed in range(6):
        loss, _ = policy.train()(make_batch(seed=seed))
        loss.backward()
        anchors = [torch.cat([g.flatten() for g in layer]) for layer in isolator._anchor_grads.reduce()]
        before = _flat_gradients(isolator)
        isolator.project_()
        for task, projected, anchor in zip(before, _flat_gradients(isolator), anchors, strict=True):
            if torch.dot(task.double(), anchor.double()) < 0:
                conflicts += 1
                assert abs(torch.cosine_similarity(projected.double(), anchor.double(), dim=0)) <= 1e-6
            else:
                assert torch.equal(task, projected)
        isolator.clear()
        optimizer.zero_grad()
    assert 0 < conflicts < 6 * policy.vlm.num_layers


def test_with_blocks_only_linear_weights_learn(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("aegis", anchor="subspace", train_vision_tower=True, train_projector=True)
    before = {name: p.detach().clone() for name, p in policy.vlm.model.named_parameters()}
    optimizer = build_optimizer(policy)
    for projector in policy.protection.projectors:
        projector.every = 2
    figures = [training_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    changed = {name for name, p in policy.vlm.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{name}.weight" for name in policy.vlm.linear_layers}
    assert figures[0]["subspace_blocked_energy"] == 0.0 < figures[2]["subspace_blocked_energy"] < 1


def test_what_one_of_joined_kinds_cannot_guard_does_not_learn(make_policy: MakePolicy) -> None:
    alone, joined = (make_policy("aegis", anchor=anchor) for anchor in ("gaussian", "gaussian+subspace"))
    learns = [
        {name for name, p in each.vlm.model.named_parameters() if p.requires_grad} for each in (alone, joined)
    ]
    linear = {f"{name}.weight" for name in joined.vlm.linear_layers}
    assert learns[1] == learns[0] & linear != learns[0]


def test_what_is_blocked_stays_while_the_rest_learns(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("aegis", anchor="subspace")
    before = {name: layer.weight.detach().clone() for name, layer in policy.vlm.linear_layers.items()}
    optimizer = build_optimizer(policy)
    for seed in range(5):
        training_step(policy, optimizer, make_batch(seed=seed))
    policy.eval()
    for projector in policy.protection.projectors:
        assert isinstance(projector, LowRankProjector)
        names = {id(layer.weight): name for name, layer in policy.vlm.linear_layers.items()}
        for weight, block in projector.blocks:
            moved = weight.detach() - before[names[id(weight)]]
            assert (moved @ block).norm() < 1e-3 * moved.norm()


def test_blocked_is_the_default_share_of_each_layers_directions(make_policy: MakePolicy) -> None:
    policy = make_policy("aegis", anchor="subspace")
    build_optimizer(policy)
    (projector,) = policy.protection.projectors
    assert isinstance(projector, LowRankProjector) and policy.anchor is not None
    prefix = policy.vlm.family.decoder_layers
    factors = {name: each for name, each in policy.anchor.factors.items() if name.startswith(prefix)}
    expected = select_blocks(factors, 0.07)
    layers = {id(layer.weight): name for name, layer in policy.vlm.linear_layers.items()}
    blocked = {layers[id(weight)]: each for weight, each in projector.blocks}
    assert blocked.keys() == expected.keys()
    for name, each in expected.items():
        assert torch.equal(blocked[name], each)


def test_answers_to_the_anchors_questions_move_less_than_unprotected(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """On the questions that the anchor was made of, the loss of the model's own answers."""
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8))
    questions = ["what colour is the cube"] * 16

    def change(protection: str, **options: Any) -> float:
        policy = make_policy(protection, optimizer_lr_backbone=1e-3, **options)
        with torch.no_grad():
            inputs = policy.vlm.answer_inputs(images, questions, policy.vlm.answer(images, questions))
            before, labels = policy.vlm.answer_logits(inputs)
            optimizer = build_optimizer(policy)
        for seed in range(5):
            training_step(policy, optimizer, make_batch(seed=seed))
        policy.eval()
        with torch.no_grad():
            after, _ = policy.vlm.answer_logits(inputs)
        return float((after - before)[labels != NO_LABEL].square().mean())

    free = change("none")
    assert change("aegis", anchor="subspace", anchor_share=0.9) < 0.2 * free


def test_expert_gradients_are_those_without_protection(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    gradients = []
    for protection in ("none", "aegis"):
        policy = make_policy(protection)
        build_optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        gradients.append([p.grad for p in policy.expert.parameters()])
    for free, protected in zip(*gradients, strict=True):
        assert torch.equal(free, protected)


def test_training_logs_the_projection(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("aegis")
    optimizer = build_optimizer(policy)
    figures = [training_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    keys = {
        "flow_loss",
        "gaussian_anchor_distance",
        "gaussian_noise_floor",
        "gaussian_conflict_fraction",
        "gaussian_energy_shed",
        "gaussian_unprojected_layers",
    }
    assert all(set(each) == keys and all(type(v) is float for v in each.values()) for each in figures)
    assert figures[0]["gaussian_anchor_distance"] > 0


def test_evaluation_of_the_loss_needs_no_optimizer_and_takes_no_anchor_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis").eval()
    with torch.no_grad():
        _, figures = policy(make_batch())
    assert set(figures) == {"flow_loss"}


def test_checkpointing_changes_neither_gradient(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    results, runs = [], []
    for checkpointing in (False, True):
        policy = make_policy("aegis", gradient_checkpointing=checkpointing)
        optimizer = build_optimizer(policy)
        ran: list[int] = []
        policy.vlm.decoder_layers[0].mlp.register_forward_hook(lambda *_, ran=ran: ran.append(1))
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        policy.protection.projectors[0].project_()
        results.append([p.grad.clone() for p in policy.vlm.decoder_layers.parameters()])
        optimizer.zero_grad()
        runs.append(len(ran))
    assert runs[0] == 1 < runs[1], "a layer runs again for each gradient, instead of keeping what it computed"
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


def test_checkpointing_sends_no_gradient_through_a_frozen_vision_tower(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("none", gradient_checkpointing=True).train()
    asked: list[bool] = []
    policy.vlm.vision_tower.register_forward_hook(
        lambda _tower, _inputs, output: asked.append(output.last_hidden_state.requires_grad)
    )
    policy(make_batch())[0].backward()
    assert asked == [False]
