"""`distill` draws hidden states to the pretrained model's on the robot's frames."""

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, train, training_step

from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.vlm.backbone import VLMBackbone


def test_the_loss_is_the_distance_to_the_pretrained_models_own_states(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("distill", penalty=2.0, optimizer_lr_backbone=1e-2)
    pretrained = VLMBackbone.from_pretrained(policy.config.vlm)
    optimizer = build_optimizer(policy)
    assert training_step(policy, optimizer, make_batch())["hidden_distance"] == 0
    batch = make_batch(seed=1)
    inputs = policy.vlm.prepare([batch[key] for key in policy.config.image_features], batch["task"])
    with torch.no_grad():
        then, now = pretrained.encode(inputs), policy.vlm.encode(inputs)
    assert not then.mask.all(), "padding, which counts for nothing"
    layers = [
        ((after - before).square().sum(-1) / before.square().sum(-1))[then.mask].mean()
        for after, before in zip(now.hidden_states, then.hidden_states, strict=True)
    ]
    expected = float(torch.stack(layers).mean())
    chunks = ActionChunks(batch["action"], batch["action_is_pad"])
    penalty = policy.protection.begin_step(policy.vlm, inputs, chunks).penalty()
    assert penalty is not None
    assert penalty.loss.item() == pytest.approx(2 * expected, rel=1e-4) and expected > 1e-4
    assert penalty.figures == {"hidden_distance": pytest.approx(expected, rel=1e-4)}
    penalty.loss.backward()
    assert all(p.grad is not None for p in policy.vlm.decoder_layers.parameters())
    assert all(reference.grad is None for reference in policy.reference.values())


def test_hidden_states_stay_nearer(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    def last(penalty: float) -> float:
        policy = make_policy("distill", penalty=penalty, optimizer_lr_backbone=1e-3)
        return train(policy, make_batch, 15)[-1]["hidden_distance"]

    assert 0 < last(100.0) < 0.5 * last(0.0)


def test_the_pretrained_model_is_read_without_moving_the_own_weights(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("distill", optimizer_lr_backbone=0.0)
    before = {name: p.detach().clone() for name, p in policy.vlm.named_parameters()}
    train(policy, make_batch, 2)
    assert all(torch.equal(p, before[name]) for name, p in policy.vlm.named_parameters())
