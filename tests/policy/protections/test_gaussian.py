"""The Gaussian anchor under `aegis`: its noise floor, and the moving average that a checkpoint keeps."""

import logging
from pathlib import Path

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections.gaussian import NoiseWarning


@pytest.mark.parametrize(("momentum", "tokens"), [(0.0, "together"), (0.9, "apart")])
def test_a_distance_that_is_noise_is_said_once(
    make_policy: MakePolicy,
    make_batch: MakeBatch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    momentum: float,
    tokens: str,
) -> None:
    """Every batch is no further away than one of the anchor's own would be."""
    policy = make_policy("aegis", anchor_momentum=momentum, anchor_tokens=tokens)
    optimizer = build_optimizer(policy)
    (isolator,) = policy.protection.projectors
    first = training_step(policy, optimizer, make_batch(size=4))
    assert 0 < first["gaussian_noise_floor"] < first["gaussian_anchor_distance"]
    assert isolator.noise_floor(8) == pytest.approx(isolator.noise_floor(4) / 2)
    asked = []
    monkeypatch.setattr(isolator, "noise_floor", lambda samples: asked.append(samples) or 1e6)
    with caplog.at_level(logging.WARNING):
        for seed in range(22):
            training_step(policy, optimizer, make_batch(size=4, seed=seed))
    warnings = [record for record in caplog.records if "mostly noise" in record.getMessage()]
    assert len(warnings) == 1 and "a batch of 4" in warnings[0].getMessage() and set(asked) == {4}


def test_a_distance_is_noise_when_its_mean_over_twenty_steps_is_near_the_floor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    quiet, early, noisy = NoiseWarning(), NoiseWarning(), NoiseWarning()
    with caplog.at_level(logging.WARNING):
        for _ in range(30):
            quiet.add(2.5, 1.0, samples=4)
        for _ in range(19):
            early.add(1.5, 1.0, samples=4)
        assert not caplog.records
        for step in range(30):
            noisy.add(2.5 if step % 2 else 1.0, 1.0, samples=4)
    (warning,) = caplog.records
    assert "1.8 times" in warning.getMessage() and "--batch_size" in warning.getMessage()


@pytest.mark.parametrize("part", ["vision_tower", "projector"])
def test_a_tower_or_projector_that_learns_is_projected_too(
    make_policy: MakePolicy, make_batch: MakeBatch, part: str
) -> None:
    policy = make_policy("aegis", **{f"train_{part}": True})
    build_optimizer(policy)
    (isolator,) = policy.protection.projectors
    protected = {id(p) for p in isolator.protected}
    assert protected == {id(p) for p in policy.vlm.parameters() if p.requires_grad}
    loss, _ = policy.train()(make_batch())
    loss.backward()
    (anchor,) = isolator._anchor_grads.reduce()[policy.vlm.num_layers :]
    own = list(getattr(policy.vlm, part).parameters())
    for p, direction in zip(own, anchor, strict=True):
        p.grad = -direction  # straight against the anchor gradient
    isolator.project_()
    left, whole = (sum(float(x.square().sum()) for x in each) for each in ([p.grad for p in own], anchor))
    assert left < 1e-6 * whole


def test_tokens_apart_are_those_of_images_and_those_of_text(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, batch = make_policy("aegis", anchor_tokens="apart"), make_batch()
    build_optimizer(policy)
    (isolator,) = policy.protection.projectors
    seen: list[torch.Tensor] = []
    collect = isolator.collect
    monkeypatch.setattr(isolator, "collect", lambda *masks: seen.extend(masks) or collect(*masks))
    policy.train()(batch)
    image_BT, text_BT = seen
    cameras = len(policy.config.image_features)
    assert (image_BT.sum(1) == cameras * policy.vlm.processor.image_seq_length).all()
    assert not (image_BT & text_BT).any() and text_BT.any(1).all()
    inputs = policy.vlm.prepare([batch[camera] for camera in policy.config.image_features], batch["task"])
    assert torch.equal(image_BT | text_BT, inputs["attention_mask"].bool())


def test_a_moving_average_travels_in_the_checkpoint(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy = make_policy("aegis", anchor_momentum=0.9)
    optimizer = build_optimizer(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    policy.save_pretrained(tmp_path)
    restored = AegisPolicy.from_pretrained(tmp_path)
    build_optimizer(restored)
    kept, found = policy.protection.state(), restored.protection.state()
    assert kept.keys() == found.keys() and len(kept) == 3
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    torch.manual_seed(7)
    expected = policy.train()(make_batch(seed=9))[1]["gaussian_anchor_distance"]
    fresh = make_policy("aegis", anchor_momentum=0.9)
    fresh.load_state_dict(policy.state_dict())
    build_optimizer(fresh)
    torch.manual_seed(7)
    assert fresh.train()(make_batch(seed=9))[1]["gaussian_anchor_distance"] != pytest.approx(
        expected, rel=1e-3
    )
    torch.manual_seed(7)
    assert restored.train()(make_batch(seed=9))[1]["gaussian_anchor_distance"] == pytest.approx(
        expected, rel=1e-5
    )
    assert restored._training_state.steps == 4
