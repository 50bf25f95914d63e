"""State and actions of every frame: are they vectors of as many finite numbers as they should be?

Statistics do not say, for they may be older than the data. The two columns are read in pieces, without the pictures
beside them: of a million frames that takes about a second.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy.typing import NDArray
from pyarrow import parquet

from aegis_policy.support.finding import Finding
from aegis_policy.support.lerobot_flags import chosen_episodes, dataset_option

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

_PLACE = ["episode_index", "frame_index"]
_PIECE = 65_536
"""Frames that are looked at together."""


def check_frames(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """Whether state and actions are whole in every frame that is trained on, where the files are here.

    What cannot be read is left to `files.check_files`, and what is no vector of numbers to `checks`.
    """
    if dataset_option("streaming") is True:
        return
    lengths = {
        key: meta.features[key]["shape"][0]
        for key in (OBS_STATE, ACTION)
        if key in meta.features and len(meta.features[key]["shape"]) == 1
    }
    unfit: dict[str, list[tuple[int, int]]] = {key: [] for key in lengths}
    try:
        for piece in _pieces(meta, [*lengths]):
            for key, length in lengths.items():
                rows = np.flatnonzero(_unfit(piece[key], length))
                unfit[key] += zip(*(piece[name].take(rows).to_pylist() for name in _PLACE), strict=True)
    except (OSError, LookupError, TypeError, ValueError, pa.ArrowException):
        return
    chosen = chosen_episodes()
    for key, places in unfit.items():
        if trained_on := [each for each in places if chosen is None or each[0] in chosen]:
            yield _finding(key, lengths[key], trained_on)


def _pieces(meta: "LeRobotDatasetMetadata", keys: list[str]) -> Iterator[dict[str, Any]]:
    for path in sorted((meta.root / "data").glob("*/*.parquet")):
        with parquet.ParquetFile(path) as file:
            for piece in file.iter_batches(_PIECE, columns=[*keys, *_PLACE]):
                yield {name: piece.column(name) for name in (*keys, *_PLACE)}


def _unfit(column: pa.Array, length: int) -> NDArray[np.bool_]:
    """Which rows do not hold so many finite numbers; a vector of length 1 may be stored as a number."""
    values = column
    if pa.types.is_nested(column.type):
        other = ~np.equal(pc.list_value_length(column).fill_null(-1), length)
        if other.any():
            return other
        values = column.flatten()
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return ~np.isfinite(numbers.reshape(len(column), -1)).all(1)


def _finding(key: str, length: int, places: list[tuple[int, int]]) -> Finding:
    said = "; ".join(f"episode {episode}, frame {frame}" for episode, frame in places[:5])
    more = "; ..." if len(places) > 5 else ""
    episodes = sorted({episode for episode, _ in places})
    return Finding(
        "error",
        f"{key} is no vector of {length} finite numbers in {len(places)} "
        f"{'frame' if len(places) == 1 else 'frames'} ({said}{more})",
        f"delete the {'episode' if len(episodes) == 1 else 'episodes'} (lerobot-edit-dataset "
        f"--operation.type=delete_episodes --operation.episode_indices='{episodes[:20]}') and compute the statistics "
        "again, or leave out what is broken with --dataset.episodes",
    )
