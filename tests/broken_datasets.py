"""LeRobotDatasets with one fault each, as careless edits and interrupted writes leave them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from aegis_policy.support.json_files import read_json, write_json

Break = Callable[[Path], None]


def info(**changes: Any) -> Break:
    """Entries of `info.json` replaced; a function is given the old value."""

    def apply(root: Path) -> None:
        held = read_json(root / "meta" / "info.json")
        for name, new in changes.items():
            held[name] = new(held[name]) if callable(new) else new
        write_json(root / "meta" / "info.json", held)

    return apply


def feature(key: str, **changes: Any) -> Break:
    """Entries of a feature in `info.json` replaced."""
    return info(features=lambda held: {**held, key: {**held.get(key, {}), **changes}})


def without_feature(key: str) -> Break:
    return info(features=lambda held: {name: each for name, each in held.items() if name != key})


def statistics(key: str, **changes: Any) -> Break:
    """Statistics of a feature: dimension 1 replaced by a number, all by a list; None removes them."""

    def apply(root: Path) -> None:
        held = read_json(root / "meta" / "stats.json")
        for name, new in changes.items():
            if new is None:
                held[key].pop(name, None)
            elif isinstance(new, int | float):
                held[key][name][1] = new
            else:
                held[key][name] = new
        (root / "meta" / "stats.json").write_text(json.dumps(held))

    return apply


def without_statistics(*keys: str) -> Break:
    def apply(root: Path) -> None:
        held = read_json(root / "meta" / "stats.json")
        write_json(root / "meta" / "stats.json", {key: each for key, each in held.items() if key not in keys})

    return apply


def tasks(*texts: Any, numbers: list[int] | None = None) -> Break:
    """The tasks' texts replaced, in their table and in the episodes'; episode i has task i."""

    def apply(root: Path) -> None:
        table = pd.DataFrame(
            {"task_index": numbers or range(len(texts))}, index=pd.Index(texts, dtype=object)
        )
        table.to_parquet(root / "meta" / "tasks.parquet")
        _rewrite(root / "meta" / "episodes", lambda held: held.assign(tasks=[[each] for each in texts]))

    return apply


def episodes(**changes: Any) -> Break:
    """Columns of the episodes' table replaced; None removes them."""

    def edit(held: pd.DataFrame) -> pd.DataFrame:
        kept = held.drop(columns=[name for name, new in changes.items() if new is None])
        return kept.assign(**{name: new for name, new in changes.items() if new is not None})

    return lambda root: _rewrite(root / "meta" / "episodes", edit)


def frames(edit: Callable[[pd.DataFrame], pd.DataFrame]) -> Break:
    """The table of frames as `edit` makes it."""
    return lambda root: _rewrite(root / "data", edit)


def vectors(key: str, **changes: Any) -> Break:
    """Vectors replaced in the table of frames; `at_7` is row 7."""

    def edit(held: pd.DataFrame) -> pd.DataFrame:
        rows = list(held[key])
        for name, new in changes.items():
            rows[int(name.removeprefix("at_"))] = new
        return held.assign(**{key: rows})

    return frames(edit)


def cut(name: str) -> Break:
    """A file of which the second half is lost."""

    def apply(root: Path) -> None:
        (path,) = root.glob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return apply


def lost(name: str) -> Break:
    """A file or folder that is gone."""

    def apply(root: Path) -> None:
        (path,) = root.glob(name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return apply


def plain(root: Path) -> None:
    """The episodes' own statistics left out: LeRobot reads and drops them, slowly."""
    _rewrite(
        root / "meta" / "episodes", lambda held: held[[key for key in held if not key.startswith("stats/")]]
    )


def broken(source: Path, target: Path, *faults: Break) -> Path:
    """A copy of a dataset with these faults."""
    shutil.copytree(source, target)
    for fault in faults:
        fault(target)
    return target


def _rewrite(folder: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    (path,) = folder.glob("*/*.parquet")
    metadata = pq.read_schema(path).metadata
    edit(pd.read_parquet(path)).to_parquet(path)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(metadata), path)
