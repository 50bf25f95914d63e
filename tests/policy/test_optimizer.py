"""The optimizer and the schedule that a policy asks `lerobot-train` for."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from environments import packages_beside
from lerobot.optim.optimizers import load_optimizer_state, save_optimizer_state
from torch import nn
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.isolation import LowRankProjector, ProjectedAdamW
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.optimizer_aegis import (
    AegisAdamWConfig,
    AegisCosineConfig,
    PolicyParameters,
    adamw_8bit,
)
from aegis_policy.support.errors import AegisError


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
    groups = {group["name"]: group for group in build_optimizer(policy).param_groups}
    assert groups["expert"]["lr"] == 3e-4 and groups["backbone_no_decay"]["lr"] == 2e-5
    assert groups["expert"]["weight_decay"] > 0 == groups["expert_no_decay"]["weight_decay"]
    grouped = {id(p) for group in groups.values() for p in group["params"]}
    assert grouped == {id(p) for p in policy.parameters() if p.requires_grad}
    decayed = [p for name in ("expert", "backbone") for p in groups[name]["params"]]
    assert all(p.ndim >= 2 for p in decayed)


def test_muon_steps_the_experts_hidden_matrices_and_adamw_the_rest(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    """As torch's own two optimizers would, each on its part."""
    ours, reference = (
        make_policy("none", expert_optimizer="muon", optimizer_lr=3e-3, optimizer_lr_backbone=1e-3).train()
        for _ in range(2)
    )
    reference.load_state_dict(ours.state_dict())
    begun = {name: p.detach().clone() for name, p in ours.named_parameters()}
    optimizer = build_optimizer(ours)
    groups = reference.get_optim_params()
    (muon,) = (group for group in groups if group.pop("muon", False))
    assert {id(p) for p in muon["params"]} == {id(p) for p in reference.expert.hidden_matrices()}
    assert (
        all(p.ndim == 2 for p in muon["params"]) and len(muon["params"]) == 7 * reference.config.expert_depth
    )
    decay = ours.config.optimizer_weight_decay
    others = [group for group in groups if group is not muon]
    two = [
        torch.optim.Muon(muon["params"], lr=3e-3, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=ours.config.optimizer_betas, weight_decay=decay),
    ]
    for step in range(3):
        torch.manual_seed(step)
        training_step(ours, optimizer, make_batch(seed=step))
        torch.manual_seed(step)
        reference(make_batch(seed=step))[0].backward()
        for each in two:
            each.step()
            each.zero_grad()
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        if not mine.requires_grad:
            continue
        away = (mine - theirs).norm() / (theirs - begun[name]).norm()
        assert away < 0.05, f"{name}: {away}, where another optimizer is 1 away"


def test_a_training_with_muon_is_resumed_as_if_it_had_not_stopped(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    first, second = (make_policy("aegis", expert_optimizer="muon").train() for _ in range(2))
    optimizer = build_optimizer(first)
    for step in range(2):
        training_step(first, optimizer, make_batch(seed=step))
    save_optimizer_state(optimizer, tmp_path)
    second.load_state_dict(first.state_dict())
    resumed = load_optimizer_state(build_optimizer(second), tmp_path)
    for policy, each in ((first, optimizer), (second, resumed)):
        torch.manual_seed(2)
        training_step(policy, each, make_batch(seed=2))
    for mine, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_step_that_a_gradient_scaler_refuses_moves_nothing() -> None:
    matrix, vector = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3))
    optimizer = ProjectedAdamW([{"params": [matrix], "muon": True}, {"params": [vector]}], lr=0.1, fused=True)
    matrix.grad, vector.grad = torch.full((3, 3), torch.inf), torch.full((3,), torch.inf)
    optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())  # as torch.amp.GradScaler leaves them
    optimizer.step()
    assert matrix.eq(1).all() and vector.eq(1).all()
    optimizer.found_inf = torch.zeros(())
    matrix.grad, vector.grad = torch.eye(3), torch.ones(3)
    optimizer.step()
    assert not matrix.eq(1).all() and vector.ne(1).all()


def test_every_rate_decays_to_zero_at_the_last_step(make_policy: MakePolicy) -> None:
    policy = make_policy("none", scheduler_warmup_steps=5)
    peak = [policy.config.optimizer_lr, policy.config.optimizer_lr_backbone]
    for steps, warmup in ((60, 5), (30, 3)):
        optimizer = build_optimizer(policy)
        scheduler = policy.config.get_scheduler_preset().build(optimizer, num_training_steps=steps)
        rates = []
        for _ in range(steps):
            optimizer.step()
            scheduler.step()
            rates.append([optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]])
        assert rates.index(peak) == warmup - 1, "a warm-up takes at most a tenth of the steps"
        assert max(rates[-1]) < 1e-9
        assert all(a / peak[0] == pytest.approx(b / peak[1]) for a, b in rates)


def test_the_backbone_waits_while_the_expert_learns(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("none", expert_only_steps=20, scheduler_warmup_steps=10)
    optimizer = build_optimizer(policy)
    schedule = policy.config.get_scheduler_preset().build(optimizer, num_training_steps=60)
    whole = build_optimizer(make_policy("none"))
    without = AegisCosineConfig(num_warmup_steps=10).build(whole, num_training_steps=60)
    start = {name: p.detach().clone() for name, p in policy.named_parameters()}
    backbone = [index for index, group in enumerate(optimizer.param_groups) if "backbone" in group["name"]]
    shares = []
    for step in range(60):
        rates, others = ([group["lr"] for group in each.param_groups] for each in (optimizer, whole))
        assert all(rates[index] == others[index] for index in range(len(rates)) if index not in backbone)
        shares.append({rates[index] / max(others[index], 1e-30) for index in backbone})
        if step < 22:
            training_step(policy, optimizer, make_batch(seed=step))
            moved = {n.split(".")[0] for n, p in policy.named_parameters() if not torch.equal(p, start[n])}
            assert moved == (set() if step == 0 else {"expert"} if step < 20 else {"expert", "vlm"})
        else:
            optimizer.step()
        whole.step()
        schedule.step()
        without.step()
    assert shares[:20] == [{0.0}] * 20
    assert [each for (each,) in shares[20:25]] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6])
    assert [each for (each,) in shares[25:]] == pytest.approx([1.0] * 35)


def test_to_wait_until_the_end_is_refused(make_policy: MakePolicy) -> None:
    policy = make_policy("none", expert_only_steps=60)
    with pytest.raises(AegisError, match=r"expert_only_steps=60 leaves the backbone none of --steps=60"):
        policy.config.get_scheduler_preset().build(build_optimizer(policy), num_training_steps=60)


def test_the_backbone_has_an_eps_of_its_own(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    ways = []
    for eps in (None, 1.0):
        policy = make_policy("none", optimizer_eps_backbone=eps)
        optimizer = build_optimizer(policy)
        own = {group["name"]: group["eps"] for group in optimizer.param_groups}
        assert own["expert"] == own["expert_no_decay"] == 1e-8
        assert own["backbone"] == own["backbone_no_decay"] == (eps or 1e-8)
        start = [p.detach().clone() for p in policy.vlm.decoder_layers.parameters()]
        training_step(policy, optimizer, make_batch())
        moved = zip(policy.vlm.decoder_layers.parameters(), start, strict=True)
        ways.append(max(float((p.detach() - p0).abs().max()) for p, p0 in moved))
    assert ways[1] < 0.1 * ways[0], "gradients are far below an eps of one"


@pytest.mark.slow
def test_the_tests_of_eight_bits_pass_with_bitsandbytes(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not installed for the others: peft imports it where it finds it, which takes a second a command."""
    monkeypatch.setenv("PYTHONPATH", str(packages_beside(tmp_path, "bitsandbytes>=0.50")))
    these = ["-m", "not slow", "-k", "moments_of_eight_bits or eight_bits_leave"]
    done = shell(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *these, __file__)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout[-3000:]


def test_moments_of_eight_bits_survive_a_checkpoint_of_lerobot_s(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    projected = adamw_8bit()

    def stepped(layer: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for step in range(steps):
            torch.manual_seed(step)
            layer.weight.grad, layer.bias.grad = torch.randn(64, 128), torch.randn(64)
            optimizer.step()

    torch.manual_seed(0)
    layer = nn.Linear(128, 64)
    optimizer = projected(layer.parameters(), lr=1e-2)
    stepped(layer, optimizer, 3)
    assert optimizer.state[layer.weight]["state1"].dtype == torch.uint8
    save_optimizer_state(optimizer, tmp_path)
    copy = nn.Linear(128, 64)
    copy.load_state_dict(layer.state_dict())
    resumed = load_optimizer_state(projected(copy.parameters(), lr=1e-2), tmp_path)
    stepped(layer, optimizer, 2)
    stepped(copy, resumed, 2)
    assert torch.equal(layer.weight, copy.weight) and torch.equal(layer.bias, copy.bias)


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_step_and_one_that_is_not_go_on_from_each_other(fused: bool, tmp_path: Path) -> None:
    def stepped(layer: nn.Linear, optimizer: torch.optim.Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        layer.weight.grad, layer.bias.grad = torch.randn(8, 16), torch.randn(8)
        optimizer.step()

    first, second = nn.Linear(16, 8), nn.Linear(16, 8)
    optimizer = ProjectedAdamW(first.parameters(), lr=1e-2, fused=not fused)
    stepped(first, optimizer, 0)
    save_optimizer_state(optimizer, tmp_path)
    second.load_state_dict(first.state_dict())
    resumed = load_optimizer_state(ProjectedAdamW(second.parameters(), lr=1e-2, fused=fused), tmp_path)
    assert resumed.param_groups[0]["fused"] is fused
    stepped(first, optimizer, 1)
    stepped(second, resumed, 1)
    torch.testing.assert_close(second.weight, first.weight)


def test_eight_bits_leave_nothing_in_the_blocks(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    pytest.importorskip("bitsandbytes")
    policy = make_policy(
        "aegis", anchor="subspace", anchor_share=0.5, optimizer_bits=8, optimizer_lr_backbone=1e-3
    ).train()
    before = {id(p): p.detach().clone() for p in policy.parameters()}
    optimizer = build_optimizer(policy)
    assert type(optimizer).__name__ == "ProjectedAdamW8bit"
    for step in range(3):
        training_step(policy, optimizer, make_batch(seed=step))
    policy.eval()
    (projector,) = policy.protection.projectors
    assert isinstance(projector, LowRankProjector)
    for weight, block in projector.blocks:
        change = weight.detach() - before[id(weight)]
        assert change.norm() > 0
        assert (change @ block).norm() < 1e-3 * change.norm()


def test_without_bitsandbytes_one_sentence_says_what_to_install(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    adamw_8bit.cache_clear()
    with pytest.raises(
        AegisError, match=r"optimizer_bits=8 needs bitsandbytes: uv pip install '\.\[low_memory\]'"
    ):
        build_optimizer(make_policy("none", optimizer_bits=8))


def test_frozen_weights_of_half_the_size_train_alike_and_reload(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        policy = make_policy("aegis", dtype="bfloat16", frozen_dtype=dtype).train()
        optimizer = build_optimizer(policy)
        assert {p.dtype for p in policy.parameters() if not p.requires_grad} == {getattr(torch, dtype)}
        assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(training_step(policy, optimizer, make_batch())["flow_loss"])
        chunk = policy.predict_action_chunk(make_batch(), noise=torch.zeros(4, 4, 3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)
    policy.save_pretrained(tmp_path)
    again = AegisPolicy.from_pretrained(tmp_path)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    torch.testing.assert_close(
        again.predict_action_chunk(make_batch(), noise=torch.zeros(4, 4, 3)), chunk, rtol=0.05, atol=0.02
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 1e-7), ("betas", (0.8, 0.9)), ("eps", 1e-5), ("weight_decay", 0.5), ("bits", 8)],
)
def test_what_lerobot_restores_may_not_be_told_anew(make_policy: MakePolicy, name: str, value: Any) -> None:
    policy = make_policy("none")
    config = policy.config.get_optimizer_preset()
    begun = json.loads(json.dumps(asdict(config)))
    groups = policy.get_optim_params()
    assert config.build(PolicyParameters(groups, (), begun))
    with pytest.raises(
        AegisError, match=rf"--optimizer\.{name}=.* changes nothing when a training is resumed"
    ):
        replace(config, **{name: value}).build(PolicyParameters(groups, (), begun))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"lr": -1.0}, "--optimizer.lr=-1.0 must be between 0 and 1000"),
        ({"lr": None}, "--optimizer.lr is null"),
        ({"grad_clip_norm": float("nan")}, "--optimizer.grad_clip_norm=nan is not finite"),
        ({"betas": (0.9, 1.0)}, "--optimizer.betas"),
        ({"bits": 16}, "--optimizer.bits=16 is unknown"),
    ],
)
def test_impossible_options_of_the_optimizer_are_named(option: dict[str, Any], named: str) -> None:
    with pytest.raises(AegisError, match=named):
        AegisAdamWConfig(**option)


def test_a_warm_up_of_less_than_no_steps_is_named() -> None:
    with pytest.raises(AegisError, match=r"--scheduler.num_warmup_steps=-1 must be at least 0"):
        AegisCosineConfig(-1)
