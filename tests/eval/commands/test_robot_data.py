"""Commands that read a LeRobotDataset say in a sentence what is wrong with it, and nothing is written."""

from pathlib import Path

import pytest
from broken_datasets import Break, broken, cut, episodes, feature, frames, info, lost, tasks

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.action_error import ActionErrorConfig, DatasetSource
from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.work.action_error import action_error
from aegis_eval.commands.work.anchor import make_anchor
from aegis_policy.support.errors import AegisError

FAULTS = {
    "format": (
        info(codebase_version="v2.1"),
        r"has the format v2\.1, and LeRobot 0\.6 reads v3: convert it with",
    ),
    "counts": (info(total_frames=-1), "says total_frames=-1, which is no count"),
    "rate": (info(fps=float("inf")), "says fps=inf, which is no frame rate"),
    "axes": (feature("observation.images.front", names=None), "does not name its axes"),
    "half an index": (cut("meta/stats.json"), r"stats.json cannot be read \(JSONDecodeError"),
    "no tasks": (lost("meta/tasks.parquet"), "tasks.parquet cannot be read"),
    "half a table": (cut("data/*/*.parquet"), "file-000.parquet cannot be read"),
    "no data": (lost("data"), "data/ holds 0 frames, and meta/info.json counts 18"),
    "lengths": (episodes(length=[1, 2, 3]), "Row 0 of meta/episodes does not follow"),
    "order": (tasks("a", "b", "c", numbers=[2, 1, 0]), "in the order of task_index"),
    "pictures": (
        frames(
            lambda held: held.assign(
                **{"observation.images.front": [{"bytes": b"?", "path": None}] * len(held)}
            )
        ),
        r"Frame 0 of .* cannot be read \(UnidentifiedImageError",
    ),
}


def _anchor_of(vlm: Path, data: Path) -> AnchorConfig:
    out = data.parent / "anchor.safetensors"
    return AnchorConfig(vlm=str(vlm), vqa=str(data), kinds=["gaussian"], samples=4, out=out)


@pytest.mark.parametrize("fault, sentence", FAULTS.values(), ids=FAULTS)
def test_an_anchor_of_robot_frames_begins_with_the_dataset(
    tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path: Path, fault: Break, sentence: str
) -> None:
    root = broken(tiny_dataset, tmp_path / "broken", fault)
    config = _anchor_of(tiny_vlm_dir, root)
    with pytest.raises(AegisError, match=sentence):
        make_anchor(config)
    assert not config.out.exists()


def test_an_anchor_is_of_colour_pictures_and_says_where_nothing_is_asked(
    tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = broken(
        tiny_dataset,
        tmp_path / "depth",
        feature("observation.images.wrist", shape=[32, 32, 1]),
        tasks("", "a", "b"),
    )
    config = _anchor_of(tiny_vlm_dir, root)
    with pytest.raises(AegisError, match=r"wrist of .* has shape \(1, 32, 32\).*--cameras"):
        make_anchor(config)
    config.cameras = "front"
    make_anchor(config)
    assert "frames without an instruction" in caplog.text


@pytest.mark.parametrize(
    "fault, sentence",
    [
        *((fault, sentence) for name, (fault, sentence) in FAULTS.items() if name != "pictures"),
        (lost("meta/info.json"), r"--dataset\.root=.* holds no meta/info\.json"),
        (tasks("a", "", "b"), "1 of 3 episodes have no instruction"),
        (
            lambda root: None,
            r"observation\.state has the shape \[5\] in the dataset and \[8\] in the checkpoint",
        ),
    ],
)
def test_the_action_error_is_measured_on_data_that_the_policy_reads(
    tiny_checkpoint: Path, tiny_dataset: Path, tmp_path: Path, fault: Break, sentence: str
) -> None:
    config = ActionErrorConfig(
        PolicySource(str(tiny_checkpoint)),
        DatasetSource(root=broken(tiny_dataset, tmp_path / "broken", fault)),
        device="cpu",
        output=tmp_path / "error.json",
    )
    with pytest.raises(AegisError, match=sentence):
        action_error(config)
    assert not config.output.exists()


def test_a_dataset_that_the_hub_does_not_give_is_a_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = DatasetSource(repo_id="nobody/nothing")
    config = ActionErrorConfig(
        PolicySource(str(tiny_checkpoint)), source, device="cpu", output=tmp_path / "x.json"
    )
    with pytest.raises(AegisError, match=r"--dataset\.repo_id=nobody/nothing cannot be read"):
        action_error(config)
