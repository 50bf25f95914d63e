"""A policy on the first of the backbone's layers: those act and learn, all of them answer."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import PROTECTIONS
from aegis_policy.support.errors import AegisError


def _upper(policy: AegisPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.vlm.decoder_layers[1:].named_parameters()}


def _lower(policy: AegisPolicy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.vlm.decoder_layers[:1].named_parameters()}


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_layers_behind_the_last_that_is_read_stay_as_they_are(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    policy = make_policy(protection, backbone_depth=1)
    upper, lower = _upper(policy), _lower(policy)
    optimizer = build_optimizer(policy)
    for seed in range(2):
        training_step(policy, optimizer, make_batch(seed=seed))
    assert _upper(policy).keys() == upper.keys(), "no adapter where nothing learns"
    assert all(torch.equal(x, upper[name]) for name, x in _upper(policy).items())
    learned = any(not torch.equal(x, lower[name]) for name, x in _lower(policy).items())
    assert learned == (protection not in ("freeze", "stop_gradient"))


@pytest.mark.parametrize("anchor", ["gaussian", "subspace", "gaussian+subspace"])
def test_every_anchor_guards_the_layers_that_learn(
    make_policy: MakePolicy, make_batch: MakeBatch, anchor: str
) -> None:
    policy = make_policy("aegis", anchor=anchor, backbone_depth=1)
    optimizer = build_optimizer(policy)
    for seed in range(2):
        training_step(policy, optimizer, make_batch(seed=seed))
    guarded = {id(p) for projector in policy.protection.projectors for p in projector.protected}
    learning = {id(p) for p in policy.vlm.parameters() if p.requires_grad}
    assert learning and learning <= guarded
    assert learning <= {id(p) for p in policy.vlm.decoder_layers[0].parameters()}


@pytest.mark.parametrize("protection", ["none", "knowledge_insulation", "lora"])
def test_checkpointing_changes_no_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch, protection: str
) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(protection, backbone_depth=1, gradient_checkpointing=checkpointing)
        build_optimizer(policy)
        torch.manual_seed(1)
        policy.train()(make_batch())[0].backward()
        gradients.append({name: p.grad for name, p in policy.named_parameters() if p.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert any("language_model.layers.0" in name and x.any() for name, x in plain.items())
    for name, x in plain.items():
        torch.testing.assert_close(recomputed[name], x)


def test_no_hooks_pile_up_where_the_models_own_configuration_asks_for_hidden_states(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    for depth in (1, None):
        policy, batch = make_policy("none", backbone_depth=depth), make_batch()
        for config in (policy.vlm.model.config, policy.vlm.model.config.get_text_config()):
            config.output_hidden_states = True
        counts = []
        for _ in range(3):
            policy.predict_action_chunk(batch)
            counts.append(sum(len(layer._forward_hooks) for layer in policy.vlm.decoder_layers))
        assert counts[1] == counts[2]


def test_an_open_depth_stays_open(make_policy: MakePolicy) -> None:
    """Of another VLM, with more layers, it means all of those."""
    policy = make_policy("none")
    assert policy.config.backbone_depth is None and policy.vlm.depth == policy.vlm.num_layers


def test_a_chunk_does_not_depend_on_the_layers_behind(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = make_policy("none", backbone_depth=1), make_batch()
    noise = torch.randn_like(batch["action"])
    image = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    inputs = policy.vlm.answer_inputs([image], ["what colour is it"], ["red"])
    chunk, logits = policy.predict_action_chunk(batch, noise), policy.vlm.answer_logits(inputs)[0]
    with torch.no_grad():
        for p in policy.vlm.decoder_layers[1].parameters():
            p.normal_(std=0.02)
    assert torch.equal(policy.predict_action_chunk(batch, noise), chunk)
    assert not torch.allclose(policy.vlm.answer_logits(inputs)[0], logits, atol=1e-3)


def test_the_depth_travels_in_the_checkpoint(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy, batch = make_policy("none", backbone_depth=1), make_batch()
    policy.save_pretrained(tmp_path)
    again = AegisPolicy.from_pretrained(tmp_path)
    assert again.vlm.depth == again.config.backbone_depth == 1 and again.vlm.num_layers == 2
    noise = torch.randn_like(batch["action"])
    assert torch.equal(again.predict_action_chunk(batch, noise), policy.predict_action_chunk(batch, noise))


def test_a_depth_that_is_not_there_is_refused(make_policy: MakePolicy) -> None:
    for depth in (0, 3):
        with pytest.raises(AegisError, match=rf"--policy.backbone_depth={depth}\b.*"):
            make_policy("none", backbone_depth=depth)
