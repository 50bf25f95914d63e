"""Headers of safetensors files, read without the library."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aegis_policy.support.tensor_files import read_header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"12",
        b"\xff" * 30,
        b"\x05\x00\x00\x00\x00\x00\x00\x00hello",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
    ],
)
def test_what_is_no_safetensors_file_is_said(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_header(path)


def test_a_file_of_another_length_than_its_header_says_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "empty": torch.zeros(0)}, path, metadata={"kind": "test"})
    header = read_header(path)
    assert header["a"]["shape"] == [3, 2] and header["__metadata__"] == {"kind": "test"}
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="is truncated: 5 bytes are missing"):
        read_header(path)
    path.write_bytes(whole + b"0")
    with pytest.raises(ValueError, match="is too long"):
        read_header(path)
    save_file({}, path)
    assert set(read_header(path)) <= {"__metadata__"}
