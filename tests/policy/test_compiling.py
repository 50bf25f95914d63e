"""Chunks by a compiled expert: the same ones, from one piece of code, on machines without a compiler too."""

import copy
import logging
from pathlib import Path

import pytest
import torch
from lerobot.policies.rtc import RTCConfig
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from training_steps import MakeBatch, MakePolicy

from aegis_policy.modeling_aegis import AegisPolicy

_NOISE = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
_INSTRUCTIONS = ("reach", "reach the red cube", "push the green sphere to the blue zone")
_LEFT_OVER = torch.full((3, 3), 4.0)


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    torch._dynamo.reset()
    counters.clear()


def _pair(make_policy: MakePolicy, **options: object) -> tuple[AegisPolicy, AegisPolicy]:
    """A policy whose expert is compiled, and the same one as it is."""
    return make_policy("none", compile_model=True, **options).eval(), make_policy("none", **options).eval()


@pytest.mark.slow
def test_one_piece_of_code_samples_the_chunks_of_every_instruction(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    compiled, plain = _pair(make_policy, rtc_config=RTCConfig(execution_horizon=3))
    lengths = set()
    for instruction in _INSTRUCTIONS:
        batch = {**make_batch(1), "task": [instruction]}
        lengths.add(plain._vlm_inputs(batch)["input_ids"].shape[1])
        for rest in ({}, {"prev_chunk_left_over": _LEFT_OVER, "inference_delay": 1}):
            torch.testing.assert_close(
                compiled.predict_action_chunk(batch, _NOISE, **rest),
                plain.predict_action_chunk(batch, _NOISE, **rest),
                rtol=1e-4,
                atol=1e-5,
            )
    assert len(lengths) == len(_INSTRUCTIONS) and counters["stats"]["unique_graphs"] == 1

    whole = torch.compile(compiled.predict_action_chunk)
    assert torch.equal(whole(batch, _NOISE), compiled.predict_action_chunk(batch, _NOISE))
    assert counters["stats"]["unique_graphs"] == 1

    copied = copy.deepcopy(compiled)
    before = copied.predict_action_chunk(batch, _NOISE)
    with torch.no_grad():
        compiled.expert.to_velocity.weight.zero_()
    assert torch.equal(copied.predict_action_chunk(batch, _NOISE), before)
    assert not torch.equal(compiled.predict_action_chunk(batch, _NOISE), before)


def test_without_a_compiler_the_expert_runs_as_it_is_and_a_warning_says_so(
    make_policy: MakePolicy, make_batch: MakeBatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    compiled, plain = _pair(make_policy)
    batch = make_batch(1)
    with (
        fresh_cache(dir=str(tmp_path)),
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        caplog.at_level(logging.WARNING),
    ):
        chunks = [compiled.predict_action_chunk(batch, _NOISE) for _ in range(2)]
    assert all(torch.equal(chunk, plain.predict_action_chunk(batch, _NOISE)) for chunk in chunks)
    said = [record.message for record in caplog.records if "compile_model" in record.message]
    assert len(said) == 1 and "cannot compile the expert" in said[0]


def test_training_is_not_compiled(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    compiled, _ = _pair(make_policy)
    loss, _ = compiled.train()(make_batch())
    loss.backward()
    assert counters["stats"]["unique_graphs"] == 0


def test_a_rollout_that_compiles_the_whole_method_traces_nothing_but_the_expert(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy, batch = make_policy("none").eval(), make_batch(1)
    expected = policy.predict_action_chunk(batch, _NOISE)
    whole = torch.compile(policy.predict_action_chunk)  # as LeRobot's `build_rollout_context` does
    assert torch.equal(whole(batch, _NOISE), expected) and counters["stats"]["unique_graphs"] == 0
