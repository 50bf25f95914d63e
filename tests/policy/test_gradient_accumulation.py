"""Micro-batches are one batch: two of eight, accumulated as accelerate does it, are a step with sixteen samples."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from training_steps import MakeBatch, MakePolicy, build_optimizer

from aegis_policy.modeling_aegis import AegisPolicy

SIZE, STEPS = 8, 3
Sample = dict[str, Any]

PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "subspace": ("aegis", {"anchor": "subspace", "anchor_share": 0.5}),
    "gaussian": ("aegis", {"anchor": "gaussian"}),
    "l2_sp": ("l2_sp", {}),
    "w2_penalty": ("w2_penalty", {"penalty": 0.1}),
    "knowledge_insulation": ("knowledge_insulation", {"replay_batch_size": 0}),
}


@pytest.fixture(autouse=True)
def accelerate_forgets() -> Iterator[None]:
    """Accelerate keeps its settings for the whole process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _sixteen(make_batch: MakeBatch, seed: int, same_observations: bool) -> tuple[Sample, Tensor, Tensor]:
    """Two batches of eight without padding, noise and times; moments of both are alike if observations are."""
    first, second = (make_batch(size=SIZE, seed=2 * seed + half) for half in range(2))
    whole = {
        key: value + second[key] if isinstance(value, list) else torch.cat([value, second[key]])
        for key, value in first.items()
    }
    if same_observations:
        for key, value in first.items():
            if key != "action":
                whole[key] = value * 2 if isinstance(value, list) else torch.cat([value, value])
    whole["action_is_pad"] = torch.zeros_like(whole["action_is_pad"])
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(whole["action"].shape, generator=generator)
    return whole, noise, torch.rand(2 * SIZE, generator=generator)


def _train(
    policy: AegisPolicy, batches: list[tuple[Sample, Tensor, Tensor]], micro: int
) -> dict[str, Tensor]:
    """Parameters after one update a batch, which comes in `micro` parts; it steps as LeRobot's main branch does."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=micro)
    bare = build_optimizer(policy)
    schedule = torch.optim.lr_scheduler.ConstantLR(bare, factor=1.0)
    policy, optimizer, schedule = accelerator.prepare(policy.train(), bare, schedule)
    for batch, noise, time in batches:
        rows = 2 * SIZE // micro
        for part in (slice(start, start + rows) for start in range(0, 2 * SIZE, rows)):
            with accelerator.accumulate(policy):
                loss, _ = policy(
                    {key: value[part] for key, value in batch.items()}, noise=noise[part], time=time[part]
                )
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return {name: p.detach().clone() for name, p in policy.named_parameters()}


@pytest.mark.parametrize("part", PARTS)
def test_two_micro_batches_of_eight_are_a_batch_of_sixteen(
    make_policy: MakePolicy, make_batch: MakeBatch, part: str
) -> None:
    protection, options = PARTS[part]
    moments = "gaussian" in options.values() or protection == "w2_penalty"
    batches = [_sixteen(make_batch, seed, same_observations=moments) for seed in range(STEPS)]
    trained = []
    for micro in (1, 2):
        policy = make_policy(protection, **options, optimizer_lr=1e-3, optimizer_lr_backbone=1e-3)
        start = {name: p.detach().clone() for name, p in policy.named_parameters()}
        trained.append(_train(policy, batches, micro))
        AcceleratorState._reset_state(reset_partial_state=True)
        assert policy._training_state.steps == micro * STEPS, "what `--steps` of LeRobot counts"
    whole, accumulated = trained
    assert {name.split(".")[0] for name in whole if not torch.equal(whole[name], start[name])} == {
        "expert",
        "vlm",
    }
    for name, expected in whole.items():
        torch.testing.assert_close(accumulated[name], expected, atol=2e-5, rtol=1e-4)
