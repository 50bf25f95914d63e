"""Real-time chunking as LeRobot's rollout asks for it, and what is refused."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.rtc import RTCConfig
from lerobot.rollout.inference.rtc import RTCInferenceEngine, supports_rtc_inference
from training_steps import MakeBatch, MakePolicy

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError

_NOISE = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
_LEFT_OVER = torch.full((3, 3), 4.0)


def _policy(make_policy: MakePolicy, rtc: RTCConfig | None) -> AegisPolicy:
    return make_policy("none", rtc_config=rtc).eval()


def test_a_chunk_goes_on_from_what_is_left_over(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = _policy(make_policy, RTCConfig(execution_horizon=3)), make_batch(1)
    plain = policy.predict_action_chunk(batch, _NOISE)
    guided = policy.predict_action_chunk(batch, _NOISE, inference_delay=1, prev_chunk_left_over=_LEFT_OVER)
    before, after = ((chunk[0, :3] - _LEFT_OVER).abs().mean(1) for chunk in (plain, guided))
    assert after[0] < 0.1 * before[0] and after[1] < 0.5 * before[1] and after[2] < before[2]
    assert not guided.requires_grad
    shorter = policy.predict_action_chunk(
        batch, _NOISE, inference_delay=1, prev_chunk_left_over=_LEFT_OVER, execution_horizon=1
    )
    torch.testing.assert_close(shorter[0, 0], guided[0, 0], atol=0.1, rtol=0)
    assert (shorter[0, 2] - _LEFT_OVER[2]).abs().mean() > 2 * after[2]


def test_without_a_rest_or_switched_off_chunks_are_the_plain_ones_bit_for_bit(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    batch = make_batch(1)
    plain = _policy(make_policy, None).predict_action_chunk(batch, _NOISE)
    on = _policy(make_policy, RTCConfig(execution_horizon=4))
    off = _policy(make_policy, RTCConfig(enabled=False))
    padded = torch.zeros(4, 3)  # as LeRobot's rollout makes a queue that is empty
    for rest in (None, padded, padded[:0]):
        chunk = on.predict_action_chunk(batch, _NOISE, inference_delay=1, prev_chunk_left_over=rest)
        assert torch.equal(chunk, plain)
    short = padded.index_fill(0, torch.tensor([0, 1]), 2.0)
    given = [rest.clone() for rest in (short, short[:2])]
    chunks = [
        on.predict_action_chunk(batch, _NOISE, inference_delay=1, prev_chunk_left_over=x) for x in given
    ]
    assert torch.equal(*chunks) and not torch.equal(chunks[0], plain), "what fills a rest up is no action"
    assert torch.equal(on.select_action(batch, _NOISE), plain[:, 0])
    for policy in (off, _policy(make_policy, None)):
        chunk = policy.predict_action_chunk(batch, _NOISE, inference_delay=1, prev_chunk_left_over=_LEFT_OVER)
        assert torch.equal(chunk, plain)
        assert torch.equal(policy.select_action(batch, _NOISE), plain[:, 0])


def test_what_cannot_be_is_said(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy, batch = _policy(make_policy, RTCConfig(execution_horizon=4)), make_batch(1)
    with pytest.raises(AegisError, match=r"use at most --inference.rtc.execution_horizon=4"):
        policy.predict_action_chunk(batch, prev_chunk_left_over=torch.ones(10, 3))
    policy.config.rtc_config = RTCConfig()  # as its `build_rollout_context` does, before the arm moves
    with pytest.raises(AegisError, match=r"4 actions, fewer than an execution horizon of 10"):
        policy.init_rtc_processor()


def test_its_settings_are_flags_and_stay_with_a_checkpoint(
    make_config: Callable[..., AegisConfig], tmp_path: Path
) -> None:
    given = draccus.parse(
        AegisConfig, args=["--rtc_config.execution_horizon=3", "--rtc_config.prefix_attention_schedule=ONES"]
    )
    make_config("none", rtc_config=given.rtc_config).save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert config.rtc_config == given.rtc_config != RTCConfig() and config.rtc_config.execution_horizon == 3


@pytest.mark.parametrize("relative", [False, True])
def test_lerobots_rollout_lets_chunks_go_on_from_each_other(make_policy: MakePolicy, relative: bool) -> None:
    options: dict[str, Any] = {"use_relative_actions": True, "n_action_steps": 1} if relative else {}
    policy, rtc = make_policy("none", **options).eval(), RTCConfig(execution_horizon=4)
    joints = [f"joint_{index}.pos" for index in range(5)]
    policy.config.action_feature_names = joints[:3]
    assert supports_rtc_inference(policy)
    policy.config.rtc_config = rtc  # as its `build_rollout_context` does
    policy.init_rtc_processor()
    left_over: list[Any] = []
    chunks: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    predict = policy.predict_action_chunk

    def recorded(*arguments: Any, **options: Any) -> Any:
        left_over.append(options["prev_chunk_left_over"])
        states.append(arguments[0]["observation.state"][0, :3])
        chunks.append(predict(*arguments, **options))
        return chunks[-1]

    policy.predict_action_chunk = recorded
    cameras = {
        f"observation.images.{name}": {"dtype": "video", "shape": (32, 32, 3)} for name in ("front", "wrist")
    }
    stats = {"observation.state": 5, "action": 3}
    preprocess, postprocess = make_aegis_pre_post_processors(
        policy.config,
        {key: {"mean": torch.zeros(size), "std": torch.ones(size)} for key, size in stats.items()},
    )
    engine = RTCInferenceEngine(
        policy=policy,
        preprocessor=preprocess,
        postprocessor=postprocess,
        robot_wrapper=SimpleNamespace(robot_type="arm"),
        rtc_config=rtc,
        hw_features={**cameras, "observation.state": {"dtype": "float32", "shape": (5,), "names": joints}},
        task="push it",
        fps=0.01,  # no chunk takes longer than a step of it
        device="cpu",
        rtc_queue_threshold=3,
    )
    engine.start()
    engine.resume()
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    deadline, at = time.monotonic() + 60, 0.0
    while len(left_over) < 3 and not engine.failed and time.monotonic() < deadline:
        engine.notify_observation({"front": picture, "wrist": picture, **dict.fromkeys(joints, at)})
        at = 0.5 if chunks else 0.0  # the arm moves once there is a chunk
        time.sleep(0.01)
    action = engine.get_action(None)
    engine.stop()
    assert not engine.failed and left_over[0] is None and left_over[1].shape == (4, 3)
    assert action is not None and action.shape == (3,)
    assert len({float(state[0]) for state in states}) == 2, "the arm moved between two chunks"
    for rest, chunk, before, after in zip(left_over[1:], chunks, states, states[1:], strict=False):
        moved = after - before if relative else torch.zeros(3)
        torch.testing.assert_close(rest[:3], chunk[0, 1:] - moved)
