"""JSON comes back as it went in, and a value that cannot be written leaves the old file alone."""

from pathlib import Path

import pytest

from aegis_policy.support.json_files import read_json, read_jsonl, write_json, write_jsonl


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
