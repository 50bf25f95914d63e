"""`decoupled_l2_sp` and `maps` draw the weights back after each step."""

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, train, training_step

from aegis_policy.isolation import SelectiveProjectionDecay
from aegis_policy.modeling_aegis import AegisPolicy


def _way(policy: AegisPolicy, make_batch: MakeBatch, steps: int = 15) -> float:
    """How far the decoder's weights go, a norm."""
    start = [p.detach().clone() for p in policy.vlm.decoder_layers.parameters()]
    train(policy, make_batch, steps)
    moved = [p.detach() - p0 for p, p0 in zip(policy.vlm.decoder_layers.parameters(), start, strict=True)]
    return float(torch.stack([each.norm() for each in moved]).norm())


@pytest.mark.parametrize(("protection", "penalty"), [("decoupled_l2_sp", 200.0), ("maps", 1.0)])
def test_weights_go_less_far(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str, penalty: float
) -> None:
    def way(strength: float) -> float:
        return _way(make_policy(protection, penalty=strength, optimizer_lr_backbone=1e-3), make_batch)

    assert way(penalty) < 0.9 * way(0.0)


def test_without_strength_either_is_no_protection(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    ways = [
        _way(make_policy(name, **options, optimizer_lr_backbone=1e-3), make_batch, steps=4)
        for name, options in (
            ("none", {}),
            ("maps", {"penalty": 0.0}),
            ("decoupled_l2_sp", {"penalty": 0.0}),
        )
    ]
    assert ways[1:] == [ways[0]] * 2


def test_maps_holds_the_first_module_most_and_the_last_not_at_all(make_policy: MakePolicy) -> None:
    policy = make_policy("maps", penalty=0.6, train_projector=True)
    (projector,) = policy.get_optim_params().projectors
    assert isinstance(projector, SelectiveProjectionDecay)
    modules = [policy.vlm.projector, *policy.vlm.decoder_layers]
    strengths = [
        {projector._strengths[p] for p in module.parameters() if p.requires_grad} for module in modules
    ]
    steps = len(modules) - 1
    assert [list(each) for each in strengths] == [
        [pytest.approx(0.6 * (1 - number / steps))] for number in range(len(modules))
    ]
    assert {id(p) for p in projector.protected} == {
        id(p) for module in modules for p in module.parameters() if p.requires_grad
    }


def test_the_log_says_how_many_weights_were_drawn_back(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("maps", optimizer_lr_backbone=1e-3)
    optimizer = build_optimizer(policy)
    shares = [training_step(policy, optimizer, make_batch(seed=step % 3))["drawn_back"] for step in range(8)]
    assert shares[0] == 0 and all(0 <= share <= 1 for share in shares) and max(shares) > 0
