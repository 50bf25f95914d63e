"""Questions that a LeRobotDataset holds about its own frames: the rows of style `vqa` that `lerobot-annotate` writes.

They are in the column `language_events` of the frame that they are about: for each camera a row of role `user`, the
question, and one of role `assistant`, the answer, as JSON of one of five kinds (LeRobot 0.6.1,
`lerobot/datasets/language.py` and `annotations/steerable_pipeline`). An answer of other text is taken as it stands.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from aegis_eval.questions.from_records import ReadBenchmark, as_examples
from aegis_eval.questions.public import people_agree
from aegis_eval.questions.records import ONE_TYPE, WHOLE, Json, Metric, Record, answers, label, shown, text
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding, enforce
from aegis_policy.vqa.examples import VQAExample
from aegis_policy.vqa.sources import expanded

if TYPE_CHECKING:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

_COLUMN, _STYLE = "language_events", "vqa"
_ANNOTATE = "annotate it with lerobot-annotate"


@dataclass(frozen=True)
class AnnotatedFrames(ReadBenchmark):
    """A `Benchmark` of the questions in a LeRobotDataset, which are read whole whatever split is asked for."""

    name: str = "lerobot"
    lmms_eval_task: str = "lerobot"
    reported: str = WHOLE

    def find_split(self, place: str | None, split: str) -> str:
        """All of it."""
        return WHOLE

    def records(self, place: str | None, split: str, *, answered: bool) -> tuple[Iterable[Record], Metric]:
        """The questions of the dataset in a folder, in the order of its frames."""
        if not place:
            raise AegisError(
                f"{self.name} needs a place, the folder of a LeRobotDataset: --vqa.path=FOLDER of aegis-vqa, "
                f"{self.name}:FOLDER elsewhere."
            )
        return [*_read(Path(expanded(place)), self.name, answered)], people_agree


ANNOTATED = AnnotatedFrames()


def annotated_examples(source: str, split: str, count: int, seed: int) -> Iterable[VQAExample]:
    """The questions of `lerobot:FOLDER` as `aegis_policy.vqa.examples` wants them of a source."""
    samples, _ = ANNOTATED.drawn(source.partition(":")[2] or None, split, count, seed, answered=False)
    return as_examples(samples)


def _read(folder: Path, flag: str, answered: bool) -> Iterator[Record]:
    from aegis_policy.data.checks import check_info
    from aegis_policy.data.files import check_files, episode_table, open_dataset, read_metadata

    meta = read_metadata(folder, flag)
    enforce(check_info(meta))
    episodes = episode_table(meta)
    enforce([episodes] if isinstance(episodes, Finding) else check_files(meta, episodes, partly=False))
    if _COLUMN not in meta.features:
        raise AegisError(f"{folder} has no column {_COLUMN}, where a dataset's questions are: {_ANNOTATE}.")
    dataset = open_dataset(meta)
    asked, places = 0, 0
    for index, rows in enumerate(dataset.hf_dataset.select_columns([_COLUMN]).with_format(None)[_COLUMN]):
        for camera, turn in _turns(rows).items():
            asked += 1
            origin = f"{folder} frame {index}, camera {camera},"
            try:
                record = _record(origin, index, camera, turn, dataset, answered)
            except ValueError as error:
                raise AegisError(f"{origin} is not usable ({error}): annotate that episode again.") from error
            places += record is None
            if record is not None:
                yield record
    if not asked:
        raise AegisError(f"{folder} holds no row of style {_STYLE} in {_COLUMN}: {_ANNOTATE}.")
    if places == asked:
        raise AegisError(
            f"All {asked} questions of {folder} ask where something is, or have no answer in words."
        )
    if places:
        logging.warning(
            f"{places} of {asked} questions of {folder} ask where something is, or have no answer in words: they are "
            "left out."
        )


def _turns(rows: Iterable[Json] | None) -> Mapping[str, Mapping[str, list[str | None]]]:
    """What is said about the view of each camera of a frame, by role."""
    turns: dict[str, dict[str, list[str | None]]] = defaultdict(lambda: defaultdict(list))
    for row in rows or ():
        if row["style"] == _STYLE:
            turns[str(row["camera"])][row["role"]].append(row["content"])
    return turns


def _record(
    origin: str,
    index: int,
    camera: str,
    turn: Mapping[str, list[str | None]],
    dataset: "LeRobotDataset",
    answered: bool,
) -> Record | None:
    """The question about a frame as a camera sees it; None if no words answer it."""
    cameras = dataset.meta.camera_keys
    if camera not in cameras:
        raise ValueError(f"the dataset has no such camera but {', '.join(cameras)}")
    questions, replies = turn.get("user", []), turn.get("assistant", [])
    if len(questions) != 1 or len(replies) > 1:
        raise ValueError(f"it has {len(questions)} questions and {len(replies)} answers, not one of each")
    kind, said = _answer(replies[0]) if replies and replies[0] else (ONE_TYPE, ())
    if said is None:
        return None
    if answered and not said:
        raise ValueError("it has no answer")
    return Record(
        id=f"{index}-{camera.rpartition('.')[2]}",
        image=str(index),
        picture=partial(_frame, dataset, index, camera),
        question=text(questions[0], "question"),
        answers=said,
        type=kind,
        origin=origin,
    )


def _answer(content: str) -> tuple[str, tuple[str, ...] | None]:
    """The kind of an answer and how it is said in words, the shortest first; None if it is not said in words."""
    try:
        payload = json.loads(content)
    except ValueError:
        payload = None
    if not isinstance(payload, dict):
        return ONE_TYPE, (text(content, "answer"),)
    for kind, (needed, words) in _KINDS.items():
        if needed <= payload.keys():
            try:
                return kind, words(payload) or None
            except ValueError:  # a list, or nothing, where a word is wanted
                return kind, None
    raise ValueError(f"its answer {shown(content)} is of no kind that lerobot-annotate writes")


def _relation(answer: Json) -> tuple[str, ...]:
    relation, object_ = (label(answer[key], key).replace("_", " ") for key in ("relation", "object"))
    return relation, f"{relation} {object_}"


_KINDS: dict[str, tuple[set[str], Callable[[Any], tuple[str, ...] | None]]] = {
    "bbox": ({"detections"}, lambda _: None),
    "keypoint": ({"label", "point_format", "point"}, lambda _: None),
    "count": ({"label", "count"}, lambda answer: answers(answer["count"])),
    "attribute": ({"label", "attribute", "value"}, lambda answer: (label(answer["value"], "value"),)),
    "spatial": ({"subject", "relation", "object"}, _relation),
}
"""Kind of an answer -> the keys that its JSON has, and how it is said."""


def _frame(dataset: "LeRobotDataset", index: int, camera: str) -> Image.Image:
    from aegis_policy.data.files import read_frame

    pixels_CHW = read_frame(dataset, index)[camera].numpy()
    return Image.fromarray((255 * pixels_CHW).round().astype(np.uint8).transpose(1, 2, 0))
