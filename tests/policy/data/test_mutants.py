"""Metadata that a broken tool or a careless hand left: findings or a sentence, never another error or a long wait."""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from broken_datasets import broken, plain
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from mutants import mutate_bytes, mutate_json

from aegis_eval.doctor import files as doctor_files
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.checks import check_dataset
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce

PLACES = (
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "meta/episodes/*/*.parquet",
    "data/*/*.parquet",
)
LONGEST_S = 60


def mutate(path: Path, rng: random.Random) -> None:
    """Change what a file says, or its bytes."""
    if path.suffix == ".json" and rng.random() < 0.8:
        path.write_text(json.dumps(mutate_json(json.loads(path.read_text()), rng, rng.randint(1, 3))))
    elif path.suffix == ".parquet" and rng.random() < 0.8:
        try:
            _mutate_table(path, rng)
        except Exception:  # what Arrow cannot write is no mutant
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    else:
        path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def _mutate_table(path: Path, rng: random.Random) -> None:
    table = pd.read_parquet(path)
    kind = rng.choice(("cell", "column", "index", "rows", "drop", "rename", "double"))
    column = rng.choice(list(table))
    values = table[column].tolist()
    if kind in ("cell", "column"):
        mutated = mutate_json(
            [str(each) if isinstance(each, bytes) else each for each in _plain(values)], rng
        )
        table[column] = pd.Series(mutated if kind == "cell" else [mutated] * len(table), dtype=object)
    elif kind == "index":
        table.index = pd.Index(mutate_json(_plain(table.index), rng))
    elif kind == "rows":
        table = table.iloc[rng.choices(range(len(table)), k=rng.randint(0, 2 * len(table)))]
    elif kind == "drop":
        table = table.drop(columns=column)
    elif kind == "rename":
        table = table.rename(columns={column: rng.choice(("", "task", "length", "tasks", column.upper()))})
    else:
        table = pd.concat([table, table])
    table.to_parquet(path)


def _plain(values: Any) -> list[Any]:
    return json.loads(
        json.dumps([each.tolist() if hasattr(each, "tolist") else each for each in values], default=str)
    )


def checked(root: Path, config: AegisConfig) -> None:
    """What the doctor finds, and a training that LeRobot has read the metadata for."""
    try:
        found = list(doctor_files.check_dataset(root))
    except AegisError:
        return  # LeRobot cannot read it either
    assert found, "neither well nor wrong"
    try:
        enforce(check_dataset(config, LeRobotDatasetMetadata("local/mutant", root=root)))
    except AegisError:
        assert any(each.status == "error" for each in found)


@pytest.fixture(scope="module")
def source(tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mutants")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield broken(tiny_dataset, folder / "source", plain)


@pytest.mark.parametrize("mutants", [6, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("place", PLACES)
def test_mutants_of_a_datasets_files_are_read_or_refused(
    source: Path, tmp_path: Path, make_config: Callable[..., AegisConfig], place: str, mutants: int
) -> None:
    for seed in range(mutants):
        rng = random.Random(f"{place} {seed}")
        root = broken(source, tmp_path / str(seed))
        (path,) = root.glob(place)
        mutate(path, rng)
        started = time.monotonic()
        try:
            checked(root, make_config("none"))
        except Exception as error:
            raise AssertionError(f"mutant {seed} of {place}: {type(error).__name__}") from error
        assert time.monotonic() - started < LONGEST_S
