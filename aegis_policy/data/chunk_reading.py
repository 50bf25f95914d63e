"""Action chunks from image datasets, without decoding pictures that nobody asked for.

LeRobot 0.6.1 fetches the H rows of an action chunk whole, and a row of a dataset with `image` features holds a PNG for
every camera: with 16 steps and two cameras, 32 pictures are decoded and thrown away for every training sample. Here
the rows are fetched with the wanted column alone. `benchmarks/dataset_access.py` prints what that saves.

`choose_reading` is called where LeRobot imports this plugin; `AEGIS_CHUNK_READING=lerobot` in the environment leaves
LeRobot's own way. The items are the same either way.
"""

import copy
import copyreg
import logging
import os
from collections.abc import Callable
from functools import wraps
from typing import Any
from weakref import WeakKeyDictionary

import datasets
from lerobot.datasets.dataset_reader import DatasetReader

VARIABLE = "AEGIS_CHUNK_READING"
Query = Callable[[DatasetReader, dict[str, list[int]]], dict[str, Any]]


def choose_reading() -> None:
    """Read chunks as the environment's `AEGIS_CHUNK_READING` says: `column` (the default), or `lerobot`."""
    wanted = os.environ.get(VARIABLE, "column")
    if wanted == "column":
        read_chunks_by_column()
    elif wanted != "lerobot":
        logging.warning(
            f"{VARIABLE}={wanted} is unknown, so LeRobot reads chunks in its own way: say column or lerobot."
        )


def read_chunks_by_column() -> None:
    """Make LeRobot's datasets read chunks this way from now on, here and in the data-loader workers they go to."""
    query = DatasetReader._query_hf_dataset
    if not hasattr(query, "__wrapped__"):
        DatasetReader._query_hf_dataset = _by_column(query)
        copyreg.pickle(DatasetReader, _pickled)  # a spawned worker has imported LeRobot alone


def _pickled(reader: DatasetReader) -> tuple[Callable[[], DatasetReader], tuple[()], dict[str, Any]]:
    return _unpickled, (), reader.__dict__


def _unpickled() -> DatasetReader:
    read_chunks_by_column()
    return DatasetReader.__new__(DatasetReader)


def _by_column(query: Query) -> Query:
    columns: WeakKeyDictionary[datasets.Dataset, dict[str, datasets.Dataset]] = WeakKeyDictionary()

    @wraps(query)
    def query_by_column(reader: DatasetReader, query_indices: dict[str, list[int]]) -> dict[str, Any]:
        narrow = copy.copy(reader)
        known = columns.setdefault(reader.hf_dataset, {})
        result: dict[str, Any] = {}
        for key, indices in query_indices.items():
            if key not in reader.hf_dataset.column_names:
                continue  # a video key, which LeRobot reads from its own files
            if key not in known:
                known[key] = reader.hf_dataset.select_columns([key])
            narrow.hf_dataset = known[key]
            result |= query(narrow, {key: indices})
        return result

    return query_by_column
