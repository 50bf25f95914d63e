"""The header of a safetensors file: what it holds, without reading its tensors. Standard library only."""

import json
import struct
from pathlib import Path
from typing import Any

_LONGEST = 100_000_000
"""Bytes of a header that the library itself would read."""


def read_header(path: Path) -> dict[str, Any]:
    """The header of a whole safetensors file: name -> dtype and shape, and `__metadata__`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or a part of it is missing.
    """
    with path.open("rb") as file:
        length = file.read(8)
        (size,) = struct.unpack("<Q", length) if len(length) == 8 else (0,)
        try:
            header = json.loads(file.read(size) if 0 < size <= _LONGEST else b"")
            tensors = [each for name, each in header.items() if name != "__metadata__"]
            end = max((_end(each) for each in tensors), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is no safetensors file") from error
    missing = 8 + size + end - path.stat().st_size
    if missing:
        raise ValueError(
            f"{path} is truncated: {missing} bytes are missing" if missing > 0 else f"{path} is too long"
        )
    found: dict[str, Any] = header
    return found


def _end(tensor: dict[str, Any]) -> int:
    """Where the bytes of a tensor end, counted from the header's end.

    Raises:
        ValueError: the entry is none of a tensor.
    """
    shape, (start, end) = tensor["shape"], tensor["data_offsets"]
    whole = all(type(number) is int and number >= 0 for number in (*shape, start, end))
    if not whole or not isinstance(tensor["dtype"], str) or start > end:
        raise ValueError
    return int(end)
