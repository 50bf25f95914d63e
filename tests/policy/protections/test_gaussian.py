"""The Gaussian anchor under `aegis`: its noise floor, and what it projects beside the decoder."""

import logging

import pytest
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.isolation import GaussianAnchor
from aegis_policy.protections.gaussian import NoiseWarning


def test_a_distance_that_is_noise_is_said_once(
    make_policy: MakePolicy,
    make_batch: MakeBatch,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every batch is no further away than one of the anchor's own would be."""
    policy = make_policy("aegis")
    optimizer = build_optimizer(policy)
    (isolator,) = policy.protection.projectors
    first = training_step(policy, optimizer, make_batch(size=4))
    assert 0 < first["gaussian_noise_floor"] < first["gaussian_anchor_distance"]
    assert isolator.anchor.noise_floor(4) == pytest.approx(first["gaussian_noise_floor"])
    asked = []
    monkeypatch.setattr(GaussianAnchor, "noise_floor", lambda _, samples: asked.append(samples) or 1e6)
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
