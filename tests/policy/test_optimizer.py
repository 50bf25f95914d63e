"""The optimizer and the schedule that a policy asks `lerobot-train` for."""

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer

from aegis_policy.errors import AegisError


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
