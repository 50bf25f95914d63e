"""Chunks read by column are the same chunks, and decode no picture but the sample's own."""

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets import io_utils
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from random_data import write_random_dataset

from aegis_policy.data.chunk_reading import read_chunks_by_column

CHUNK = {"action": [step / 10 for step in range(8)], "observation.state": [-0.1, 0.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of six frames with one camera."""
    folder = tmp_path_factory.mktemp("data") / "small"
    write_random_dataset(
        folder, {"observation.images.front": (16, 16)}, state=3, action=2, tasks=["task 0", "task 1"]
    )
    return folder


@pytest.fixture
def original() -> Iterator[Any]:
    """LeRobot's own reading, put back afterwards."""
    query = DatasetReader._query_hf_dataset
    unwrapped = getattr(query, "__wrapped__", query)
    DatasetReader._query_hf_dataset = unwrapped
    yield unwrapped
    DatasetReader._query_hf_dataset = query


def _items(root: Path, **options: Any) -> list[dict[str, Any]]:
    dataset = LeRobotDataset("local/small", root=root, delta_timestamps=CHUNK, **options)
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize(
    ("told", "by_column"), [(None, True), ("column", True), ("lerobot", False), ("pages", False)]
)
def test_the_plugin_reads_by_column_unless_the_environment_says_otherwise(
    original: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    told: str | None,
    by_column: bool,
) -> None:
    if told is None:
        monkeypatch.delenv("AEGIS_CHUNK_READING", raising=False)
    else:
        monkeypatch.setenv("AEGIS_CHUNK_READING", told)
    plugin = importlib.import_module("lerobot_policy_aegis")
    DatasetReader._query_hf_dataset = original
    importlib.reload(plugin)  # as when LeRobot looks for plugins
    assert (DatasetReader._query_hf_dataset is not original) == by_column
    assert ("say column or lerobot" in caplog.text) == (told == "pages")


@pytest.mark.parametrize("options", [{}, {"episodes": [1]}])
def test_items_are_the_same(root: Path, original: Any, options: dict[str, Any]) -> None:
    expected = _items(root, **options)
    read_chunks_by_column()
    assert DatasetReader._query_hf_dataset is not original
    items = _items(root, **options)
    assert len(items) == len(expected) > 0
    for mine, its in zip(items, expected, strict=True):
        assert mine.keys() == its.keys()
        assert mine["action"].shape == (8, 2) and mine["observation.state"].shape == (2, 3)
        for key, value in its.items():
            assert torch.equal(mine[key], value) if isinstance(value, torch.Tensor) else mine[key] == value


def test_only_the_samples_own_picture_is_decoded(
    root: Path, original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    to_tensor = io_utils.pil_to_chw_tensor
    monkeypatch.setattr(io_utils, "pil_to_chw_tensor", lambda image: decoded.append(1) or to_tensor(image))
    _items(root)
    assert len(decoded) > 12
    read_chunks_by_column()
    read_chunks_by_column()
    decoded.clear()
    _items(root)
    assert len(decoded) == 12


def test_a_process_that_is_sent_a_dataset_reads_it_by_column_too(
    root: Path, original: Any, tmp_path: Path
) -> None:
    read_chunks_by_column()
    dataset = LeRobotDataset("local/small", root=root, delta_timestamps=CHUNK)
    (tmp_path / "dataset.pickle").write_bytes(pickle.dumps(dataset))
    # As a spawned loader worker does it, which has imported nothing of ours.
    worker = (
        "import pickle, sys\n"
        "from lerobot.datasets.dataset_reader import DatasetReader\n"
        "assert not hasattr(DatasetReader._query_hf_dataset, '__wrapped__')\n"
        "dataset = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert hasattr(DatasetReader._query_hf_dataset, '__wrapped__')\n"
        "print(dataset[9]['action'].tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", worker, str(tmp_path / "dataset.pickle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(dataset[9]["action"].tolist())
