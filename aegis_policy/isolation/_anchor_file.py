"""The one file of an anchor: safetensors, with a header that says what it is and a checksum of all that is in it.

Here are bytes and tensors by name; what they make up is in `_anchor`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from aegis_policy.isolation._gaussian import REBUILD, AnchorError

KIND = "aegis-anchor"
"""What the file calls its format."""
FORMAT_VERSION = "3"
_READ = ("2", FORMAT_VERSION)
"""In version 2 no layer shares another's tensors."""
_CHECKSUM = "checksum"
"""Key of the checksum in the header; files of earlier versions have none."""
_RESTORE = f"restore it from where it was made, or {REBUILD}"


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file beside its place first, so that `path` is either whole or untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    whole = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    header = {key: str(value) for key, value in metadata.items() if key != _CHECKSUM}
    header |= {"kind": KIND, "format_version": FORMAT_VERSION}
    header[_CHECKSUM] = _checksum(whole, header)
    try:
        save_file(whole, beside, header)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """What `write` wrote: tensors, metadata, and whether a checksum vouches for them.

    Raises:
        AnchorError: no such file, not a whole safetensors file, another kind of file or another format, other contents
            than were written.
    """
    if not path.is_file():
        raise AnchorError(f"There is no anchor at {path}", f"correct the path or {REBUILD}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError, RuntimeError) as error:
        raise AnchorError(f"The anchor {path} is truncated or not a safetensors file") from error
    kind, version = metadata.get("kind"), metadata.get("format_version")
    if kind == KIND and version is not None and version.isdecimal() and int(version) > int(FORMAT_VERSION):
        raise AnchorError(
            f"The anchor {path} is of format {version!r}, and this version reads {FORMAT_VERSION!r}",
            f"update lerobot_policy_aegis, or {REBUILD}",
        )
    if kind != KIND or version not in _READ:
        raise AnchorError(
            f"The anchor {path} is {kind!r} of format {version!r}, not {KIND!r} of format {FORMAT_VERSION!r}"
        )
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum not in (None, _checksum(tensors, metadata)):
        raise AnchorError(f"The anchor {path} is damaged: it holds other values than were written", _RESTORE)
    return tensors, metadata, checksum is not None


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(metadata.items()))).encode())
    for name, x in sorted(tensors.items()):
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
