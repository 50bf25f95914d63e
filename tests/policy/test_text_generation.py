"""Text at the robot: what `/vqa` of LeRobot's newer rollout is answered, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
from lerobot.policies.utils import prepare_observation_for_inference
from lerobot.utils import constants
from training_steps import MakePolicy

from aegis_policy.data.batches import QUERY_KIND, QUERY_TEXT, read_question
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import SENTENCE_TOKENS

_QUESTION = "what colour is the cube"
_JOINTS = [f"joint_{index}.pos" for index in range(5)]
_STATS = {
    key: {"mean": torch.zeros(size), "std": torch.ones(size)}
    for key, size in {"observation.state": 5, "action": 3}.items()
}


@pytest.fixture(scope="module")
def policy(make_policy: MakePolicy) -> AegisPolicy:
    return make_policy("none").eval()


@pytest.fixture
def pictures() -> dict[str, np.ndarray]:
    """What the cameras of a robot show, by their names at the robot."""
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in ("front", "wrist")}


def _asked(
    pictures: dict[str, np.ndarray], policy: AegisPolicy, text: Any, kind: str = "vqa"
) -> dict[str, Any]:
    frame = {f"observation.images.{name}": picture for name, picture in pictures.items()}
    frame["observation.state"] = np.zeros(5, dtype=np.float32)
    batch = prepare_observation_for_inference(frame, torch.device("cpu"), "push it", "arm")
    preprocess, _ = make_aegis_pre_post_processors(policy.config, _STATS)
    return {**preprocess(batch), QUERY_KIND: kind, QUERY_TEXT: text}  # 0.6.1 lets none through its processors


def test_the_answer_is_what_the_vlm_says_of_the_first_picture(
    policy: AegisPolicy, pictures: dict[str, np.ndarray]
) -> None:
    (expected,) = policy.vlm.answer([pictures["front"]], [_QUESTION], SENTENCE_TOKENS)
    (other,) = policy.vlm.answer([pictures["wrist"]], [_QUESTION], SENTENCE_TOKENS)
    assert policy.supports_text_generation()
    assert policy.generate_text(_asked(pictures, policy, _QUESTION)) == expected != other


@pytest.mark.parametrize(
    ("text", "camera", "question"),
    [
        (_QUESTION, "front", _QUESTION),
        (f"wrist: {_QUESTION}", "wrist", _QUESTION),
        (f"pick: {_QUESTION}", "front", f"pick: {_QUESTION}"),
        ("wrist:", "front", "wrist:"),
    ],
)
def test_a_question_may_name_another_camera(
    policy: AegisPolicy, pictures: dict[str, np.ndarray], text: str, camera: str, question: str
) -> None:
    picture, asked = read_question(policy.config, _asked(pictures, policy, text))
    assert asked == question and picture.dtype == np.uint8
    assert np.array_equal(picture, pictures[camera])


def test_a_question_leaves_the_actions_to_come_as_they_were(
    policy: AegisPolicy, pictures: dict[str, np.ndarray]
) -> None:
    policy.reset()
    batch, noise = _asked(pictures, policy, _QUESTION), torch.randn(1, 4, 3)
    chunk = policy.predict_action_chunk(batch, noise)
    assert torch.equal(policy.select_action(batch, noise), chunk[:, 0])
    policy.generate_text(batch)
    assert torch.equal(policy.select_action(batch), chunk[:, 1])


def test_what_is_no_question_is_refused(policy: AegisPolicy, pictures: dict[str, np.ndarray]) -> None:
    asked = _asked(pictures, policy, _QUESTION)
    front = "observation.images.front"
    for batch, sentence in [
        ({**asked, QUERY_KIND: "next_subtask"}, "plans no subtasks"),
        ({**asked, QUERY_TEXT: " "}, "Nothing is asked"),
        ({key: value for key, value in asked.items() if key != QUERY_TEXT}, "Nothing is asked"),
        (
            {key: value for key, value in asked.items() if key != front},
            f"about {front}, which the batch lacks",
        ),
        ({**asked, front: asked[front].repeat(2, 1, 1, 1)}, "about 2 pictures"),
        ({**asked, front: asked[front] * 255}, "holds values from"),
    ]:
        with pytest.raises(AegisError, match=sentence):
            policy.generate_text(batch)


@pytest.mark.skipif(not hasattr(constants, "QUERY_KIND"), reason="this LeRobot's rollout asks nothing")
def test_lerobots_rollout_asks_it(policy: AegisPolicy, pictures: dict[str, np.ndarray]) -> None:
    from lerobot.rollout.inference.sync import SyncInferenceEngine

    cameras = {f"observation.images.{name}": {"dtype": "video", "shape": (32, 32, 3)} for name in pictures}
    before, after = make_aegis_pre_post_processors(policy.config, _STATS)
    engine = SyncInferenceEngine(
        policy=policy,
        preprocessor=before,
        postprocessor=after,
        dataset_features={
            **cameras,
            "observation.state": {"dtype": "float32", "shape": (5,), "names": _JOINTS},
        },
        ordered_action_keys=[],
        task="push it",
        device="cpu",
        robot_type="arm",
    )
    answers = []
    engine.set_answer_observer(answers.append)
    assert engine.supports_text_queries and engine.ask(f"wrist: {_QUESTION}")
    engine.pump_query({**pictures, **dict.fromkeys(_JOINTS, 0.0)})
    engine.start_autosteer("tidy up", interval_s=0.0)
    engine.pump_query({**pictures, **dict.fromkeys(_JOINTS, 0.0)})
    assert [answers[0].answer] == policy.vlm.answer([pictures["wrist"]], [_QUESTION], SENTENCE_TOKENS)
    assert "plans no subtasks" in answers[1].error and engine.autosteer_goal is None
