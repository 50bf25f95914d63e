"""What each protection lets the flow loss do to the backbone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.errors import AegisError
from aegis_policy.isolation import GradientIsolator, ProjectedAdamW
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protection import PROTECTIONS

MakePolicy = Callable[..., AegisPolicy]
MakeBatch = Callable[..., dict[str, Any]]


def _optimizer(policy: AegisPolicy) -> torch.optim.Optimizer:
    return policy.config.get_optimizer_preset().build(policy.get_optim_params())


def _step(policy: AegisPolicy, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> dict[str, float]:
    loss, figures = policy.train()(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return figures


def _flat_gradients(isolator: GradientIsolator) -> list[torch.Tensor]:
    return [
        torch.cat([p.grad.flatten() for p in layer if p.grad is not None]) for layer in isolator.parameters
    ]


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_gradient_reaches_every_layer_that_is_read_or_none(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection)
    _optimizer(policy)
    policy.train()(make_batch())[0].backward()
    reached = [
        any(p.grad is not None and p.grad.any() for p in layer.parameters())
        for layer in policy.vlm.decoder_layers
    ]
    assert reached == [protection in ("none", "aegis")] * policy.vlm.num_layers
    assert all(p.grad is not None for p in policy.expert.parameters())


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_only_what_may_learn_changes(make_policy: MakePolicy, make_batch: MakeBatch, protection: str) -> None:
    policy = make_policy(protection)
    before = {name: p.detach().clone() for name, p in policy.vlm.named_parameters()}
    optimizer = _optimizer(policy)
    for seed in range(2):
        _step(policy, optimizer, make_batch(seed=seed))
    changed = {name for name, p in policy.vlm.named_parameters() if not torch.equal(p, before[name])}
    layers = {name for name in before if "language_model.layers." in name}
    assert changed == (layers if protection in ("none", "aegis") else set())


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
@pytest.mark.parametrize("protection", ["none", "freeze", "aegis"])
def test_tower_and_projector_train_when_asked(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, part: str
) -> None:
    policy = make_policy(protection, **{f"train_{part}": True})
    _optimizer(policy)
    policy.train()(make_batch())[0].backward()
    grads = [p.grad for p in getattr(policy.vlm, part).parameters()]
    assert any(grad is not None and grad.any() for grad in grads)


def test_stop_gradient_refuses_to_train_the_tower(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(AegisError, match=r"stop_gradient lets no gradient into the VLM.*train_vision_tower"):
        make_config("stop_gradient", train_vision_tower=True)


def test_unknown_protection_is_answered_with_the_known_ones(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(
        AegisError, match=r"--policy.protection=prayer is unknown.*none, freeze, stop_gradient, aegis"
    ):
        make_config("prayer")


def test_projected_gradients_are_orthogonal_to_the_anchor_gradient_or_untouched(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis")
    optimizer = _optimizer(policy)
    assert isinstance(optimizer, ProjectedAdamW)
    isolator = policy.protection.isolator
    assert isolator is not None
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


def test_expert_gradients_are_those_without_protection(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    gradients = []
    for protection in ("none", "aegis"):
        policy = make_policy(protection)
        _optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        gradients.append([p.grad for p in policy.expert.parameters()])
    for free, protected in zip(*gradients, strict=True):
        assert torch.equal(free, protected)


def test_training_logs_the_projection(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("aegis")
    optimizer = _optimizer(policy)
    figures = [_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    keys = {"flow_loss", "anchor_distance", "conflict_fraction", "energy_shed", "unprojected_layers"}
    assert all(set(each) == keys and all(type(v) is float for v in each.values()) for each in figures)
    assert figures[0]["anchor_distance"] > 0


def test_evaluation_of_the_loss_needs_no_optimizer_and_takes_no_anchor_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("aegis").eval()
    with torch.no_grad():
        _, figures = policy(make_batch())
    assert set(figures) == {"flow_loss"}


def test_checkpointing_changes_neither_gradient(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    results = []
    for checkpointing in (False, True):
        policy = make_policy("aegis", gradient_checkpointing=checkpointing)
        optimizer = _optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        policy.protection.isolator.project_()
        results.append([p.grad.clone() for p in policy.vlm.decoder_layers.parameters()])
        optimizer.zero_grad()
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain)


@pytest.mark.parametrize("how", ["plain AdamW over the groups", "policy.parameters()"])
def test_an_optimizer_that_does_not_project_stops_the_run(
    make_policy: MakePolicy, make_batch: MakeBatch, how: str
) -> None:
    policy = make_policy("aegis")
    torch.optim.AdamW(policy.parameters() if how == "policy.parameters()" else policy.get_optim_params())
    with pytest.raises(
        AegisError, match=r"projects gradients in the optimizer's step.*--optimizer.type=aegis_adamw"
    ):
        policy.train()(make_batch())


def test_aegis_adamw_refuses_bare_parameters(make_policy: MakePolicy) -> None:
    policy = make_policy("aegis")
    with pytest.raises(AegisError, match="--use_policy_training_preset"):
        policy.config.get_optimizer_preset().build(policy.parameters())


def test_groups_have_their_own_rates_and_do_not_decay_vectors(make_policy: MakePolicy) -> None:
    policy = make_policy("aegis", optimizer_lr=3e-4, optimizer_lr_backbone=2e-5)
    groups = {group["name"]: group for group in _optimizer(policy).param_groups}
    assert groups["expert"]["lr"] == 3e-4 and groups["backbone_no_decay"]["lr"] == 2e-5
    assert groups["expert"]["weight_decay"] > 0 == groups["expert_no_decay"]["weight_decay"]
    grouped = {id(p) for group in groups.values() for p in group["params"]}
    assert grouped == {id(p) for p in policy.parameters() if p.requires_grad}
    decayed = [p for name in ("expert", "backbone") for p in groups[name]["params"]]
    assert all(p.ndim >= 2 for p in decayed)


def test_every_rate_decays_to_zero_at_the_last_step(make_policy: MakePolicy) -> None:
    policy = make_policy("none", scheduler_warmup_steps=5)
    peak = [policy.config.optimizer_lr, policy.config.optimizer_lr_backbone]
    for steps, warmup in ((60, 5), (30, 3)):
        optimizer = _optimizer(policy)
        scheduler = policy.config.get_scheduler_preset().build(optimizer, num_training_steps=steps)
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]])
        assert rates.index(peak) == warmup - 1, "a warm-up takes at most a tenth of the steps"
        assert max(rates[-1]) < 1e-9
        assert all(a / peak[0] == pytest.approx(b / peak[1]) for a, b in rates)


def test_fsdp_is_refused(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("aegis")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(AegisError, match=r"FSDP.*torchrun"):
        policy.get_optim_params()
