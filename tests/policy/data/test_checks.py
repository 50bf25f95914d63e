"""Datasets that cannot train the policy are refused before the first step."""

import json
import re
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import broken_datasets
import pytest
import torch
from broken_datasets import (
    broken,
    cut,
    episodes,
    feature,
    frames,
    info,
    lost,
    plain,
    statistics,
    tasks,
    vectors,
    without_feature,
    without_statistics,
)
from findings import told
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.policies.factory import make_policy

from aegis_eval.doctor import files as doctor_files
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.batches import check_batch
from aegis_policy.data.checks import check_dataset
from aegis_policy.data.statistics import check_kept
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json

Statistics = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def plain_dataset(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset, faster to load."""
    return broken(tiny_dataset, tmp_path_factory.mktemp("data") / "plain", plain)


@pytest.fixture
def given() -> Statistics:
    return {
        "observation.state": {"mean": torch.zeros(5), "std": torch.ones(5)},
        "action": {"mean": torch.full((3,), 2.0), "std": torch.full((3,), 4.0)},
    }


def test_statistics_that_do_not_cover_a_feature_are_refused(
    make_config: Callable[..., AegisConfig], given: Statistics
) -> None:
    config = make_config("none")
    del given["action"]["std"]
    with pytest.raises(AegisError, match=r"no `std` of action.*MEAN_STD"):
        AegisPolicy(config, dataset_stats=given)
    with pytest.raises(AegisError, match=r"no `std` of action"):
        make_aegis_pre_post_processors(config, given)


@pytest.mark.parametrize("value", [torch.zeros(4), torch.full((5,), torch.nan)])
def test_statistics_of_another_length_or_not_finite_are_refused(
    make_config: Callable[..., AegisConfig], given: Statistics, value: torch.Tensor
) -> None:
    given["observation.state"]["mean"] = value
    with pytest.raises(AegisError, match=r"no usable `mean` of observation.state"):
        AegisPolicy(make_config("none"), dataset_stats=given)


def test_a_renamed_state_whose_statistics_keep_the_old_name_is_refused(
    make_config: Callable[..., AegisConfig], given: Statistics
) -> None:
    given["robot.state"] = given.pop("observation.state")
    with pytest.raises(AegisError, match=r"no `mean` of observation.state.*does not rename statistics"):
        AegisPolicy(make_config("none"), dataset_stats=given)


def faults() -> Iterator[tuple[str, list[broken_datasets.Break], str, str]]:
    """Name, faults, what the sentence must hold, and the status."""
    state, action, camera = "observation.state", "action", "observation.images.front"
    e, w = "error", "warning"
    yield "mean of NaN", [statistics(action, mean=nan)], r"no usable `mean` of action.*nan in dimension 1", e
    yield (
        "infinite mean",
        [statistics(state, mean=inf)],
        r"`mean` of observation.state.*inf in dimension 1",
        e,
    )
    yield "too large for float32", [statistics(state, mean=1e300)], "is inf in dimension 1", e
    yield "deviation below zero", [statistics(action, std=-1.0)], r"`std` of action.*-1.0 in dimension 1", e
    yield "other length", [statistics(action, std=[1.0])], r"with shape \(3,\) and which has \(1,\)", e
    yield "nested", [statistics(action, std=[[1.0, 2.0, 3.0]])], r"which has \(1, 3\)", e
    yield "texts", [statistics(action, std=["a", "b", "c"])], "no usable `std` of action", e
    yield "no deviation", [statistics(action, std=None)], "have no `std` of action", e
    yield "no statistics of actions", [without_statistics(action)], "have no `mean` of action", e
    yield "no statistics of both", [without_statistics(action, state)], r"no `mean` of observation.state", e
    yield "no statistics", [lost("meta/stats.json")], "have no `mean` of observation.state", e
    yield "no statistics of a camera", [without_statistics(camera)], "use_imagenet_stats=false", e
    yield "deviation of zero", [statistics(action, std=0)], r"action reaches .*e\+08 .* in dimension 1", e
    yield (
        "tiny deviation",
        [statistics(state, std=1e-7)],
        r"observation.state reaches .*e\+07 .* in dimension 1",
        e,
    )
    yield (
        "names",
        [statistics(action, std=0), feature(action, names=["x", "y", "z"])],
        r"dimension 1 \(y\)",
        e,
    )
    yield (
        "named in groups",
        [statistics(action, std=0), feature(action, names={"arm": ["x", "y"], "hand": ["z"]})],
        r"dimension 1 \(y\)",
        e,
    )
    yield (
        "constant",
        [statistics(action, std=0, mean=0.5, min=0.5, max=0.5)],
        "action never changes in dimension 1",
        w,
    )
    yield "outlier", [statistics(state, max=500.0)], "reaches .* in dimension 1, and outliers", w
    yield (
        "noise alone",
        [statistics(state, mean=0.0, min=-2e-7, max=2e-7, std=1e-7)],
        "observation.state changes by 1e-07 or less in dimension 1",
        w,
    )
    yield "all blank", [tasks(" ", "", "\t")], "The dataset has no instruction", e
    yield "no texts", [tasks(None, None, None)], "The dataset has no instruction", e
    yield (
        "one blank",
        [tasks("a", "b", " ")],
        r"1 of 3 episodes have no instruction \(a blank task; episode 2\)",
        e,
    )
    yield "one missing", [tasks("a", None, "c")], r"1 of 3 episodes have no instruction .* episode 1\)", e
    yield "invisible", [tasks("a", "\u200b", "\u00a0")], r"2 of 3 episodes .* episode 1, 2\)", e
    yield "order of tasks", [tasks("a", "b", "c", numbers=[2, 0, 1])], "in the order of task_index", e
    yield "tasks from one", [tasks("a", "b", "c", numbers=[1, 2, 3])], "in the order of task_index", e
    yield (
        "task out of range",
        [frames(lambda held: held.assign(task_index=held["task_index"] + 7))],
        "task_index 9, and meta/tasks.parquet holds 3",
        e,
    )
    yield "no camera", [without_feature(camera), without_feature("observation.images.wrist")], "no camera", e
    yield "no state", [without_feature(state)], r"no observation.state; its keys are .*action", e
    yield "no action", [without_feature(action)], "gives this policy no action", e
    yield "depth", [feature(camera, shape=[32, 32, 1])], r"front has shape \(1, 32, 32\).*remove_feature", e
    yield "transparency", [feature(camera, shape=[32, 32, 4])], r"front has shape \(4, 32, 32\)", e
    yield (
        "axes by other names",
        [feature(camera, names=["h", "w", "rgb"])],
        r"has shape \(32, 32, 3\).*: name its axes",
        e,
    )
    yield "no quantiles", [statistics(action, mean=None)], r"shape \(3,\): name", e
    yield (
        "NaN in a frame",
        [vectors(state, at_7=[0, nan, 0, 0, 0])],
        r"observation.state is no vector of 5 finite numbers in 1 frame \(episode 1, frame 1\).*indices='\[1\]'",
        e,
    )
    yield (
        "infinity in frames",
        [vectors(action, at_0=[0, inf, 0], at_17=[-inf, 0, 0])],
        r"action is no .* in 2 frames \(episode 0, frame 0; episode 2, frame 5\).*indices='\[0, 2\]'",
        e,
    )
    yield "a short vector", [vectors(action, at_3=[1.0, 2.0])], r"in 1 frame \(episode 0, frame 3\)", e
    yield "no vector", [vectors(action, at_3=None)], r"in 1 frame \(episode 0, frame 3\)", e
    yield "half a vector", [vectors(action, at_3=[1.0, None, 2.0])], r"in 1 frame \(episode 0, frame 3\)", e
    yield (
        "square actions",
        [feature(action, shape=[1, 3])],
        r"action has shape \(1, 3\), and the policy wants one",
        e,
    )
    yield "empty actions", [feature(action, shape=[0])], r"action has shape \(0,\)", e
    yield "actions of text", [feature(action, dtype="string")], "of dtype string", e
    yield "frames miscounted", [info(total_frames=20)], "counts 20 frames, and the episodes have 18", e
    yield "episodes miscounted", [info(total_episodes=2)], "counts 2 episodes, and meta/episodes has 3", e
    yield (
        "a length",
        [episodes(length=[6, 5, 6])],
        "Row 1 of meta/episodes does not follow the one before it",
        e,
    )
    yield "no bounds", [episodes(dataset_to_index=None)], "lacks the column dataset_to_index", e
    yield (
        "frames lost",
        [frames(lambda held: held[:-1])],
        "data/ holds 17 frames, and meta/info.json counts 18",
        e,
    )
    yield "a column lost", [frames(lambda held: held.drop(columns=action))], "lacks the column action", e
    yield "half a file", [cut("data/*/*.parquet")], "file-000.parquet cannot be read", e
    yield (
        "video without videos",
        [feature(camera, dtype="video")],
        "Where the videos of observation.images.front are cannot be told",
        e,
    )


FAULTS = list(faults())


@pytest.mark.parametrize(
    "fault, sentence, status", [each[1:] for each in FAULTS], ids=[each[0] for each in FAULTS]
)
def test_a_training_and_the_doctor_say_the_same_of_a_dataset(
    plain_dataset: Path,
    tmp_path: Path,
    make_config: Callable[..., AegisConfig],
    caplog: pytest.LogCaptureFixture,
    fault: list[broken_datasets.Break],
    sentence: str,
    status: str,
) -> None:
    root = broken(plain_dataset, tmp_path / "broken", *fault)
    doctor = [each for each in doctor_files.check_dataset(root) if each.status != "ok"]
    assert [each.status for each in doctor if re.search(sentence, str(each))] == [status], told(doctor)
    config = make_config("none", input_features=None, output_features=None)
    with caplog.at_level("WARNING"):
        started = training(config, root)
    assert [str(each) for each in doctor if each.status == "error"] == started
    assert [str(each) for each in doctor if each.status == "warning"] == [
        each for each in caplog.messages if each in {str(every) for every in doctor}
    ]


def training(config: AegisConfig, root: Path) -> list[str]:
    """What `lerobot-train` ends with once it has read a dataset, a line an error."""
    try:
        make_policy(config, ds_meta=LeRobotDatasetMetadata("local/broken", root=root))
    except AegisError as error:
        return str(error).split("\n")
    return []


@pytest.mark.parametrize(
    "fault, sentence",
    [
        (lost("meta/info.json"), "holds no meta/info.json"),
        (
            info(codebase_version="v2.1"),
            r"has the format v2\.1, and LeRobot 0\.6 reads v3.*convert_dataset_v21_to_v30",
        ),
        (info(codebase_version=None), "has the format None"),
        (info(fps=0), r"info.json cannot be read .*fps"),
        (info(fps="ten"), r"info.json cannot be read"),
        (info(fps=nan), r"says fps=nan, which is no frame rate"),
        (info(total_tasks=0), "has no tasks"),
        (info(total_episodes=0, total_frames=0), "is empty"),
        (info(total_frames="many"), "says total_frames='many', which is no count"),
        (feature("observation.images.front", names=None), "does not name its axes"),
        (feature("observation.images.front", names=["height"]), "does not name its axes"),
        (feature("observation.images.front", shape=[32, 32]), "is a camera with the shape"),
        (feature("action", shape=None), "Feature action of meta/info.json has the shape None"),
        (feature("action", shape=[-3]), "has the shape"),
        (feature("action", dtype=None), "Feature action of meta/info.json has no dtype"),
        (lost("meta/tasks.parquet"), "tasks.parquet cannot be read"),
        (cut("meta/tasks.parquet"), "tasks.parquet cannot be read"),
        (lost("meta/episodes"), "episodes holds no episodes"),
        (cut("meta/episodes/*/*.parquet"), "episodes cannot be read"),
        (cut("meta/stats.json"), "stats.json cannot be read"),
        (cut("meta/info.json"), "info.json cannot be read"),
    ],
)
def test_what_lerobot_stumbles_over_is_a_sentence_of_the_doctor(
    plain_dataset: Path, tmp_path: Path, fault: broken_datasets.Break, sentence: str
) -> None:
    root = broken(plain_dataset, tmp_path / "broken", fault)
    try:
        found = told(doctor_files.check_dataset(root))
    except AegisError as error:
        found = str(error)
    assert re.search(sentence, found)


def test_a_dataset_that_is_well_is_trained_on_without_a_word(
    plain_dataset: Path, make_config: Callable[..., AegisConfig]
) -> None:
    meta = LeRobotDatasetMetadata("local/tiny", root=plain_dataset)
    assert [*check_dataset(make_config("none"), meta)] == []
    assert [each.status for each in doctor_files.check_dataset(plain_dataset)] == ["ok"]


def test_an_instruction_stands_in_for_one_task_at_most(
    plain_dataset: Path, tmp_path: Path, make_config: Callable[..., AegisConfig]
) -> None:
    config = make_config("none", instruction="push the T")
    blank = broken(plain_dataset, tmp_path / "blank", tasks("", " ", "a"))
    assert training(config, blank) == []
    assert [
        each.status for each in doctor_files.check_dataset(blank, flags=["--instruction=push the T"])
    ] == ["ok"]
    (said,) = training(make_config("none", instruction="push the T"), plain_dataset)
    assert "stand in for 3 different instructions" in said
    with pytest.raises(AegisError, match=r"--policy\.instruction says nothing"):
        make_config("none", instruction=" ")


@pytest.mark.parametrize("chosen, refused", [("[0,1]", False), ("[1,2]", True), (None, True)])
def test_a_blank_task_of_an_episode_that_is_left_out_does_no_harm(
    plain_dataset: Path,
    tmp_path: Path,
    make_config: Callable[..., AegisConfig],
    monkeypatch: pytest.MonkeyPatch,
    chosen: str | None,
    refused: bool,
) -> None:
    root = broken(plain_dataset, tmp_path / "blank", tasks("a", "b", ""))
    given = [] if chosen is None else [f"--dataset.episodes={chosen}"]
    monkeypatch.setattr("sys.argv", ["lerobot-train", *given])
    assert bool(training(make_config("none"), root)) is refused
    write_json(tmp_path / "train_config.json", {"dataset": {"episodes": chosen and json.loads(chosen)}})
    monkeypatch.setattr("sys.argv", ["lerobot-train", f"--config_path={tmp_path / 'train_config.json'}"])
    assert bool(training(make_config("none"), root)) is refused


@pytest.mark.parametrize(
    "flag, fault, sentence",
    [
        ("--dataset.episodes=[0,3]", [], "names 3, and the dataset has 3 episodes"),
        ("--dataset.episodes=[0,2]", [vectors("action", at_7=[0, nan, 0])], ""),
        (
            "--dataset.episodes=[0,1]",
            [vectors("action", at_7=[0, nan, 0])],
            "in 1 frame (episode 1, frame 1)",
        ),
        ("--dataset.streaming=true", [lost("data")], ""),
        ("--dataset.streaming=false", [lost("data")], "data/ holds 0 frames"),
        ("--dataset.use_imagenet_stats=false", [without_statistics("observation.images.front")], ""),
    ],
)
def test_how_a_training_reads_the_dataset_is_taken_from_its_flags(
    plain_dataset: Path,
    tmp_path: Path,
    make_config: Callable[..., AegisConfig],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    fault: list[broken_datasets.Break],
    sentence: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["lerobot-train", flag])
    said = training(make_config("none"), broken(plain_dataset, tmp_path / "broken", *fault))
    assert sentence in "".join(said) and bool(said) is bool(sentence)


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda image: (image * 255).byte(), r"front is of dtype torch\.uint8.*divide it by 255"),
        (lambda image: image * 255, r"front holds values from 0\.\d to 25\d\.\d"),
        (lambda image: image * 2 - 1, r"front holds values from -1\.0 to 1\.0"),
        (lambda image: image * torch.nan, "front holds values from nan to nan"),
        (lambda image: image[..., :0], "front is empty"),
        (lambda image: image.movedim(1, -1), r"front has shape \(4, 32, 32, 3\)"),
        (lambda image: image[:, :1], r"front has shape \(4, 1, 32, 32\)"),
        (lambda image: image[0], r"front has shape \(3, 32, 32\)"),
    ],
)
def test_pictures_in_another_form_are_refused(
    make_config: Callable[..., AegisConfig],
    make_batch: Callable[..., dict[str, Any]],
    change: Callable[[torch.Tensor], torch.Tensor],
    sentence: str,
) -> None:
    batch = make_batch()
    check_batch(make_config("none"), batch, with_actions=True)
    batch["observation.images.front"] = change(batch["observation.images.front"])
    with pytest.raises(AegisError, match=sentence):
        check_batch(make_config("none"), batch, with_actions=True)


@pytest.mark.parametrize(
    "key, change, sentence",
    [
        ("action", lambda x: x[..., 0], r"action has shape \(4, 4\)"),
        ("action", lambda x: x[..., :2], "action has 2 values in the data and 3 in the policy"),
        ("observation.state", lambda x: x[0], r"observation.state has shape \(5,\)"),
        ("task", lambda _: None, "has no instruction"),
        ("task", lambda _: ["a", None, "b", "c"], "has no instruction"),
        ("task", lambda _: ["a", "\u200b", "b", "c"], "has no instruction"),
    ],
)
def test_vectors_and_instructions_in_another_form_are_refused(
    make_config: Callable[..., AegisConfig],
    make_batch: Callable[..., dict[str, Any]],
    key: str,
    change: Callable[[Any], Any],
    sentence: str,
) -> None:
    batch = make_batch()
    batch[key] = change(batch[key])
    with pytest.raises(AegisError, match=sentence):
        check_batch(make_config("none"), batch, with_actions=True)


def test_pictures_are_normalised_by_the_vlm_alone(make_config: Callable[..., AegisConfig]) -> None:
    for mapping, sentence in (
        ({"VISUAL": "MEAN_STD"}, "normalises pictures"),
        ({"state": "MIN_MAX"}, "'state': its keys are"),
    ):
        with pytest.raises(AegisError, match=sentence):
            AegisPolicy(make_config("none", normalization_mapping=mapping))


def test_what_the_policy_does_not_read_is_not_normalised_either(
    plain_dataset: Path, tmp_path: Path, make_config: Callable[..., AegisConfig]
) -> None:
    extra = {"dtype": "bool", "shape": [1], "names": None}
    root = broken(
        plain_dataset,
        tmp_path / "more",
        feature("observation.touch", **extra),
        feature("action.mode", **extra),
        frames(lambda held: held.assign(**{"observation.touch": True, "action.mode": False})),
    )
    config = make_config("none", input_features=None, output_features=None)
    assert training(config, root) == []
    assert set(config.output_features or {}) == {"action"}
    assert set(config.input_features or {}) == {*config.image_features, "observation.state"}


def test_processors_normalise_state_and_actions_and_leave_images(
    make_config: Callable[..., AegisConfig], given: Statistics
) -> None:
    before, after = make_aegis_pre_post_processors(make_config("none"), given)
    image = torch.rand(3, 32, 32)
    batch = before(
        {
            "observation.images.front": image,
            "observation.images.wrist": image,
            "observation.state": torch.zeros(5),
            "action": torch.full((3,), 6.0),
            "task": "reach",
        }
    )
    assert torch.equal(batch["observation.images.front"][0], image)
    torch.testing.assert_close(batch["action"], torch.ones(1, 3))
    assert batch["task"] == ["reach"]
    torch.testing.assert_close(after(torch.ones(1, 3)), torch.full((1, 3), 6.0))


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX", "QUANTILES"])
@pytest.mark.parametrize("times, said", [(1.0, False), (3.0, False), (57.3, True)])
def test_data_in_other_units_than_those_a_checkpoint_goes_on_normalising_by_are_named(
    plain_dataset: Path,
    tmp_path: Path,
    make_config: Callable[..., AegisConfig],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    times: float,
    said: bool,
) -> None:
    config = make_config("none", normalization_mapping={"STATE": mode, "ACTION": mode})
    meta = LeRobotDatasetMetadata("local/tiny", root=plain_dataset)
    meta.stats["action"] |= {name: each.copy() for name, each in meta.stats["action"].items()}
    for each in meta.stats["action"].values():
        if each.shape == (3,):
            each[0] = 0.5 if each is not meta.stats["action"]["std"] else 0.0  # a joint that was held
    make_aegis_pre_post_processors(config, meta.stats)[0].save_pretrained(tmp_path)
    meta.stats["action"] = {name: each * times for name, each in meta.stats["action"].items()}
    found = [str(each) for each in check_kept(config, tmp_path, meta.stats, {})]
    assert [
        re.findall(r"^action of this dataset reaches .* in dimensions 1, 2:", each) != [] for each in found
    ] == [True] * said
    for resume in (True, False):
        monkeypatch.setattr("sys.argv", ["lerobot-train", f"--resume={str(resume).lower()}"])
        warned = [each for each in check_dataset(config, meta, tmp_path) if "of this dataset" in each.what]
        assert bool(warned) is (said and resume)
