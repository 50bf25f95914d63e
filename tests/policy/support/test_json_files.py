"""JSON comes back as it went in, and a value that cannot be written leaves the old file alone."""

import json
import tracemalloc
from pathlib import Path

import pytest

from aegis_policy.support.json_files import (
    LineError,
    iterate_jsonl,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)


def test_values_come_back_and_paths_become_text(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"folder": Path("data"), "lr": [1e-4]})
    assert read_json(tmp_path / "a.json") == {"folder": "data", "lr": [1e-4]}


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    records = [{"question": "one\u2028line"}, {"question": "two\nlines"}, {"question": "next\u0085line"}]
    (tmp_path / "a.jsonl").write_text('{"question": "one\u2028line"}\n{"question": "two\\nlines"}\n')
    assert read_jsonl(tmp_path / "a.jsonl") == records[:2]
    write_jsonl(tmp_path / "b.jsonl", records)
    assert read_jsonl(tmp_path / "b.jsonl") == records


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [1, 2])
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_jsonl(tmp_path / "a.jsonl", [3, object()])
    assert read_jsonl(tmp_path / "a.jsonl") == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\u0085", "\t", "\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]
)
def test_what_ends_lines_elsewhere_is_text_here(mark: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'"one{mark}line"\n2', newline="")
    assert list(iterate_jsonl(tmp_path / "a.jsonl")) == [(1, f"one{mark}line"), (2, 2)]


def test_a_mark_of_utf_8_carriage_returns_blank_lines_and_no_last_newline_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n \t\n{"a": 2}')
    assert list(iterate_jsonl(tmp_path / "a.jsonl")) == [(1, {"a": 1}), (4, {"a": 2})]
    (tmp_path / "a.json").write_bytes("\ufeff[1]".encode())
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"question": "wh', "Unterminated string"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "4300 digits"),
        ('["größer"]'.encode("latin-1"), "it is not text in UTF-8"),
        ('["wide"]'.encode("utf-16"), "it is not text in UTF-8"),
        (b'"' + b"x" * 2**24 + b'"', "Unterminated string"),
    ],
    ids=["half", "deep", "digits", "latin-1", "utf-16", "long"],
)
def test_a_line_that_is_not_json_is_a_value_error_with_its_number(
    line: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n" + line)
    with pytest.raises(LineError, match=rf"line 2: .*{reason}"):
        read_jsonl(tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_bytes(line)
    if len(line) < 2**24:
        with pytest.raises(ValueError, match=reason):
            read_json(tmp_path / "a.json")


def test_a_long_file_is_read_a_line_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{json.dumps('x' * 1000)}\n" * 20_000)
    tracemalloc.start()
    count = sum(1 for _ in iterate_jsonl(tmp_path / "a.jsonl"))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000 and most < 2**20, "of twenty million bytes"
