"""Protected components between the steps in which they are held, and wherever somebody looks at the weights."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.isolation import LowRankProjector
from aegis_policy.modeling_aegis import AegisPolicy

Weights = dict[str, Tensor]


def _pretrained(policy: AegisPolicy) -> Weights:
    return {name: layer.weight.detach().clone() for name, layer in policy.vlm.linear_layers.items()}


def _strayed(policy: AegisPolicy, pretrained: Weights) -> float:
    """How far blocked components are from the pretrained ones, relative to the way of the whole weight: the most."""
    (projector,) = policy.protection.projectors
    assert isinstance(projector, LowRankProjector)
    names = {id(layer.weight): name for name, layer in policy.vlm.linear_layers.items()}
    shares = []
    for weight, block in projector.blocks:
        moved = weight.detach() - pretrained[names[id(weight)]]
        shares.append(float((moved @ block).norm() / moved.norm()))
    return max(shares)


@pytest.fixture
def strayed(make_policy: MakePolicy, make_batch: MakeBatch) -> tuple[AegisPolicy, Any, Weights]:
    """A policy and its optimizer after three steps, of which none held anything, and its pretrained weights."""
    policy = make_policy("aegis", anchor="subspace", optimizer_lr_backbone=1e-3)
    pretrained, optimizer = _pretrained(policy), build_optimizer(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    assert _strayed(policy, pretrained) > 1e-2
    return policy, optimizer, pretrained


def test_a_checkpoint_holds_the_pretrained_components_and_so_does_what_is_trained_from_it(
    strayed: tuple[AegisPolicy, Any, Weights], make_batch: MakeBatch, tmp_path: Path
) -> None:
    policy, optimizer, pretrained = strayed
    policy.save_pretrained(tmp_path / "first")
    state = optimizer.state_dict()
    resumed = AegisPolicy.from_pretrained(tmp_path / "first").train()
    continued = build_optimizer(resumed)
    assert _strayed(resumed, pretrained) < 1e-4
    continued.load_state_dict(state)
    for seed in range(3, 6):
        training_step(resumed, continued, make_batch(seed=seed))
    assert _strayed(resumed, pretrained) > 1e-2
    resumed.save_pretrained(tmp_path / "second")
    assert _strayed(resumed, pretrained) < 1e-4


def test_whoever_takes_the_state_dict_gets_held_weights(strayed: tuple[AegisPolicy, Any, Weights]) -> None:
    policy, _, pretrained = strayed
    policy.state_dict()
    assert _strayed(policy, pretrained) < 1e-4


def test_evaluation_sees_held_weights(
    strayed: tuple[AegisPolicy, Any, Weights], make_batch: MakeBatch
) -> None:
    policy, _, pretrained = strayed
    policy.predict_action_chunk(make_batch())
    assert _strayed(policy, pretrained) < 1e-4


def test_the_probe_asks_held_weights(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(
        "aegis",
        anchor="subspace",
        optimizer_lr_backbone=1e-3,
        vqa_probe_freq=3,
        vqa_probe_data=str(tiny_vqa),
        vqa_probe_samples=2,
    )
    pretrained, optimizer, found = _pretrained(policy), build_optimizer(policy), []

    def answer(images: list[Any], questions: list[str], max_new_tokens: int) -> list[str]:
        found.append(_strayed(policy, pretrained))
        return ["red"] * len(images)

    monkeypatch.setattr(policy.vlm, "answer", answer)
    for seed in range(4):
        training_step(policy, optimizer, make_batch(seed=seed))
    assert len(found) == 2 and found[1] < 1e-4
