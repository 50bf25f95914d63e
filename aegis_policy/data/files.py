"""A LeRobotDataset's files: its metadata read from a folder, and whether the data beside them are what they say.

Whatever a file holds, what cannot be read becomes one sentence that names it. Of data files only footers are read.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import parquet

from aegis_policy.support.errors import AegisError, one_line, some
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

_FORMAT = "v3"
_BOUNDS = ["dataset_from_index", "dataset_to_index"]
_NEEDED = ["episode_index", "length", *_BOUNDS]


def read_metadata(folder: Path, flag: str) -> "LeRobotDatasetMetadata":
    """The metadata of the LeRobotDataset in a folder, which is never looked for elsewhere.

    Args:
        folder: with `meta/`.
        flag: that named it.

    Raises:
        AegisError: there is none, it has the format of an older LeRobot, or a file cannot be read.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.datasets.io_utils import load_info, load_stats, load_tasks

    info_file = folder / "meta" / "info.json"
    if not info_file.is_file():
        raise AegisError(
            f"{flag}={folder} holds no meta/info.json: give the folder of a LeRobotDataset, which has meta/, data/ and "
            "maybe videos/."
        )
    info = _read(info_file, lambda: read_json(info_file))
    made = str(info.get("codebase_version", "unknown")) if isinstance(info, Mapping) else "unknown"
    if not made.startswith(_FORMAT):
        raise AegisError(
            f"{flag}={folder} has the format {made[:40]}, and LeRobot 0.6 reads {_FORMAT}: convert it with `python -m "
            f"lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=local/{folder.name} --root={folder} "
            "--push-to-hub=false`."
        )
    loaded = _read(info_file, lambda: load_info(folder))
    if loaded.total_tasks:
        _read(folder / "meta/tasks.parquet", lambda: load_tasks(folder))
    _read(folder / "meta/stats.json", lambda: load_stats(folder))
    episodes = folder / "meta/episodes"
    if loaded.total_episodes and not [*episodes.glob("*/*.parquet")]:
        raise AegisError(f"{episodes} holds no episodes: restore it, or record the dataset again.")
    return _read(episodes, lambda: LeRobotDatasetMetadata(f"local/{folder.name}", root=folder))


def fetch_metadata(repo_id: str) -> "LeRobotDatasetMetadata":
    """The metadata of a dataset of the hub, or of LeRobot's folder for those.

    Raises:
        AegisError: there is none, or LeRobot cannot read it.
    """
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    mend = "give its id on the hub, or --dataset.root=FOLDER"
    return _read(f"--dataset.repo_id={repo_id}", lambda: LeRobotDatasetMetadata(repo_id), mend)


def open_dataset(meta: "LeRobotDatasetMetadata", **options: Any) -> "LeRobotDataset":
    """The dataset of these metadata, in its folder.

    Args:
        meta: found to be well, see `checks.check_records`.
        options: as LeRobot takes them.

    Raises:
        AegisError: its data cannot be read.
    """
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return _read(meta.root / "data", lambda: LeRobotDataset(meta.repo_id, root=meta.root, **options))


def read_frame(dataset: "LeRobotDataset", index: int) -> dict[str, Any]:
    """One frame as LeRobot gives it.

    Raises:
        AegisError: a picture or a video of it cannot be read.
    """
    frame: dict[str, Any] = _read(f"Frame {index} of {dataset.root}", lambda: dataset[index])
    return frame


def _read[T](
    name: Path | str, load: Callable[[], T], mend: str = "restore it, or record the dataset again"
) -> T:
    try:
        return load()
    except Exception as error:  # of any kind: LeRobot, pandas and Arrow trust what they read
        raise AegisError(
            f"{name} cannot be read ({type(error).__name__}: {one_line(error, 200)}): {mend}."
        ) from error


def episode_table(meta: "LeRobotDatasetMetadata") -> Any:
    """A pandas table, a row for each episode in order, with what LeRobot finds its frames by; or else a `Finding`."""
    restore = "restore meta/, or record the dataset again"
    if meta.episodes is None:
        return Finding("error", "meta/episodes holds no episodes", restore)
    names = meta.episodes.column_names
    if lacking := [name for name in _NEEDED if name not in names]:
        return Finding("error", f"meta/episodes lacks the column {lacking[0]}", restore)
    wanted = [name for name in names if name in (*_NEEDED, "tasks") or name.startswith(("data/", "videos/"))]
    try:
        table = meta.episodes.select_columns(wanted).to_pandas()
        numbers = table[_NEEDED].astype("int64")
    except (TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        return Finding("error", f"meta/episodes holds what is no number ({error})", restore)
    if len(table) != meta.total_episodes:
        return Finding(
            "error",
            f"meta/info.json counts {meta.total_episodes} episodes, and meta/episodes has {len(table)}",
            restore,
        )
    start = numbers["length"].cumsum() - numbers["length"]
    right = (
        (numbers["episode_index"] == range(len(table)))
        & (numbers["length"] > 0)
        & (numbers["dataset_from_index"] == start)
        & (numbers["dataset_to_index"] == start + numbers["length"])
    )
    if not right.all():
        return Finding(
            "error",
            f"Row {int(right.idxmin())} of meta/episodes does not follow the one before it (episode_index, length, "
            "dataset_from_index, dataset_to_index)",
            restore,
        )
    if (frames := int(numbers["length"].sum())) != meta.total_frames:
        return Finding(
            "error",
            f"meta/info.json counts {meta.total_frames} frames, and the episodes have {frames}",
            restore,
        )
    return table.assign(**numbers)


def check_files(meta: "LeRobotDatasetMetadata", episodes: Any, *, partly: bool) -> Iterator[Finding]:
    """Whether data and videos are there and whole, as far as that is seen without reading them.

    Args:
        meta: of the dataset, whose folder `meta.root` is.
        episodes: those that are trained on, see `episode_table`.
        partly: whether that is some of them; a dataset of the hub is then fetched in part.
    """
    restore = "fetch or record the dataset again"
    rows, tasks = 0, 0
    for path in sorted((meta.root / "data").glob("*/*.parquet")):
        name = path.relative_to(meta.root)
        try:
            footer = parquet.read_metadata(path)
            columns = set(footer.schema.to_arrow_schema().names)
            tasks = max(tasks, *_largest(footer, "task_index"), 0)
        except (OSError, ValueError, TypeError, pa.ArrowException) as error:
            yield Finding("error", f"{name} cannot be read ({one_line(error, 200)})", restore)
            return
        lacking = [
            key for key, each in meta.features.items() if each["dtype"] != "video" and key not in columns
        ]
        if lacking:
            yield Finding("error", f"{name} lacks the column {lacking[0]} that meta/info.json lists", restore)
            return
        rows += footer.num_rows
    if not partly and rows != meta.total_frames:
        yield Finding(
            "error", f"data/ holds {rows} frames, and meta/info.json counts {meta.total_frames}", restore
        )
    if meta.tasks is not None and tasks >= len(meta.tasks):
        yield Finding(
            "error",
            f"A frame has the task_index {tasks}, and meta/tasks.parquet holds {len(meta.tasks)} tasks",
            "restore the file",
        )
    yield from _check_videos(meta, episodes)


def _largest(footer: parquet.FileMetaData, column: str) -> Iterator[int]:
    """The largest value of a column in each row group, where the file keeps that."""
    place = footer.schema.names.index(column) if column in footer.schema.names else None
    for group in range(footer.num_row_groups if place is not None else 0):
        found = footer.row_group(group).column(place).statistics
        if found is not None and found.has_min_max:
            yield int(found.max)


def _check_videos(meta: "LeRobotDatasetMetadata", episodes: Any) -> Iterator[Finding]:
    for key in meta.video_keys:
        try:
            places = episodes[[f"videos/{key}/chunk_index", f"videos/{key}/file_index"]].astype("int64")
            rows = episodes["episode_index"][~places.duplicated()]
            paths = [meta.root / meta.get_video_file_path(int(row), key) for row in rows]
            missing = [path for path in paths if not path.is_file()]
        except (AttributeError, LookupError, TypeError, ValueError, OSError) as error:
            yield Finding(
                "error",
                f"Where the videos of {key} are cannot be told ({type(error).__name__}: {error})",
                "restore video_path in meta/info.json and the columns of meta/episodes",
            )
            continue
        if missing:
            yield Finding(
                "error",
                f"The dataset lacks videos of {key}: {some([str(path.relative_to(meta.root)) for path in missing])}",
                "fetch or record the dataset again",
            )
