"""The questions that `lerobot-annotate` leaves in a LeRobotDataset are asked about the frames they were made for.

LeRobot's own writer puts them there, from rows as its `vqa` module makes them.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from official_files import load_questions
from random_data import write_random_dataset

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.vqa import QuestionSource, VqaConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.commands.work.vqa import evaluate
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa

FRONT, WRIST = "observation.images.front", "observation.images.wrist"
COUNT = {"label": "cube", "count": 2, "note": "one is hidden"}
COLOUR = {"label": "cube", "attribute": "color", "value": "red"}
BESIDE = {"subject": "cube", "relation": "left_of", "object": "bowl"}
BOX = {"detections": [{"label": "cube", "bbox_format": "xyxy", "bbox": [1, 2, 3, 4]}]}


def vqa(role: str, time: float, content: str | None, camera: str = FRONT) -> dict:
    return {
        "role": role,
        "content": content,
        "style": "vqa",
        "timestamp": time,
        "camera": camera,
        "tool_calls": None,
    }


def pair(time: float, question: str, answer: dict | str, camera: str = FRONT) -> list[dict]:
    content = answer if isinstance(answer, str) else json.dumps(answer, sort_keys=True)
    return [vqa("user", time, question, camera), vqa("assistant", time, content, camera)]


def annotate(root: Path, episodes: Sequence[Sequence[dict]]) -> Path:
    """A dataset of two cameras and an episode of six frames, ten a second, for each list of rows."""
    from lerobot.annotations.steerable_pipeline import LanguageColumnsWriter
    from lerobot.annotations.steerable_pipeline.executor import Executor
    from lerobot.annotations.steerable_pipeline.reader import iter_episodes
    from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
    from lerobot.annotations.steerable_pipeline.writer import speech_atom

    tasks = [f"do {number}" for number in range(len(episodes))]
    write_random_dataset(root, dict.fromkeys((FRONT, WRIST), (32, 40)), state=3, action=2, tasks=tasks)
    records, staging = [*iter_episodes(root)], root.with_name(f"{root.name}-staging")
    for record, rows in zip(records, episodes, strict=True):
        times = dict(zip(np.float32(record.frame_timestamps).tolist(), record.frame_timestamps, strict=True))
        exact = [{**row, "timestamp": times[float(np.float32(row["timestamp"]))]} for row in rows]
        place = EpisodeStaging(staging, record.episode_index)
        place.write("vqa", exact)
        place.write("interjections", [speech_atom(record.frame_timestamps[0], "Here I go.")])
        plan = {"role": "assistant", "content": "1. go", "style": "plan", "timestamp": 0.0, "camera": None}
        place.write("plan", [plan])
    LanguageColumnsWriter().write_all(records, staging, root)
    Executor._ensure_annotation_metadata_in_info(root)
    return root


EPISODES = [
    [*pair(0.2, "how many cubes are there?", COUNT), *pair(0.2, "what colour is the cube?", COLOUR, WRIST)],
    [
        *pair(0.0, "where is the cube?", BOX),
        *pair(0.5, "where is it?", BESIDE),
        *pair(0.5, "is it on?", "yes", WRIST),
    ],
]


def test_each_question_is_about_its_camera_s_view_of_its_frame(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    root = annotate(tmp_path / "mine", EPISODES)
    with caplog.at_level(logging.WARNING):
        samples, total = load_questions("lerobot", str(root), None, 100)
    assert "1 of 5 questions of" in caplog.text and "where something is" in caplog.text
    assert total == 4 and [(each.question, each.answer, each.type) for each in samples] == [
        ("how many cubes are there?", "2", "count"),
        ("what colour is the cube?", "red", "attribute"),
        ("where is it?", "left of", "spatial"),
        ("is it on?", "yes", "question"),
    ]
    frames = LeRobotDataset("local/mine", root=root)
    for sample, (index, camera) in zip(
        samples, [(2, FRONT), (2, WRIST), (11, FRONT), (11, WRIST)], strict=True
    ):
        expected = (255 * frames[index][camera].numpy()).round().transpose(1, 2, 0)
        assert np.array_equal(sample.image, expected), "what LeRobot shows of that frame"
    assert [samples[2].score(said) for said in ("Left of the bowl.", "left of", "right of")] == [
        1.0,
        1.0,
        0.0,
    ]


def test_replay_and_anchor_take_them_by_name_and_frames_without_one(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    root = annotate(tmp_path / "mine", EPISODES)
    examples = load_vqa(f"lerobot:{root}", "--policy.replay_data", count=3, with_answers=True)
    assert len(examples) == 3 and all(each.answer and each.image.shape == (32, 40, 3) for each in examples)
    for source, count in ((f"lerobot:{root}", 4), (str(root), 12)):
        config = AnchorConfig(
            vlm=str(tiny_vlm_dir),
            vqa=source,
            samples=50,
            kinds=["gaussian"],
            out=tmp_path / f"{count}.safetensors",
        )
        assert int(make_anchor(config).metadata["samples"]) == count


def test_the_command_asks_them(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    root = annotate(tmp_path / "mine", EPISODES)
    config = VqaConfig(
        vlm=str(tiny_vlm_dir), benchmark="lerobot", vqa=QuestionSource(str(root)), output_dir=tmp_path / "out"
    )
    results = json.loads((evaluate(config) / "results.json").read_text())
    assert results["n"] == 4 and set(results["per_type"]) == {"count", "attribute", "spatial", "question"}


ASKED = vqa("user", 0.1, "what is it?")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "mine holds no row of style vqa in language_events: annotate it with lerobot-annotate"),
        (
            [vqa("assistant", 0.1, "red")],
            r"frame 1, camera \S+front, .* \(it has 0 questions and 1 answers, not one of",
        ),
        ([ASKED, ASKED], "it has 2 questions and 0 answers"),
        ([ASKED], "it has no answer"),
        (
            pair(0.1, "what?", "red", "observation.images.top"),
            "the dataset has no such camera but .*front, .*wrist",
        ),
        (
            pair(0.1, "what?", {"colour": "red"}),
            "its answer .*colour.* is of no kind that lerobot-annotate writes",
        ),
        (
            pair(0.1, "where?", BOX),
            "All 1 questions of .*mine ask where something is, or have no answer in words",
        ),
        *[
            (pair(0.1, "what colour?", {**COLOUR, "value": value}), "All 1 questions of .*mine")
            for value in (None, ["red", "blue"], {"main": "red"})
        ],
    ],
)
def test_what_cannot_be_asked_is_one_sentence(rows: list, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=sentence):
        load_questions("lerobot", str(annotate(tmp_path / "mine", [rows])), None, 100)


def test_a_dataset_without_the_column_no_dataset_and_no_place_are_named(
    tiny_dataset: Path, tmp_path: Path
) -> None:
    for place, sentence in (
        (str(tiny_dataset), "has no column language_events, where a dataset's questions are"),
        (str(tmp_path), r"holds no meta/info\.json: give the folder of a LeRobotDataset"),
        (None, "lerobot needs a place, the folder of a LeRobotDataset: --vqa.path=FOLDER"),
    ):
        with pytest.raises(AegisError, match=sentence):
            load_questions("lerobot", place, None, 100)
