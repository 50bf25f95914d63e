"""Whether a training is resumed, as its command line says."""

import sys
from pathlib import Path

import pytest

from aegis_policy.support.json_files import write_json
from aegis_policy.support.lerobot_flags import resuming


def _arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])


def test_resuming_is_what_lerobot_takes_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["--resume=true"], ["--resume", "true"], ["--resume=True", "--config_path=x"]):
        _arguments(monkeypatch, *arguments)
        assert resuming()
    for arguments in ([], ["--resume=false"], ["--config_path=/nowhere/train_config.json"]):
        _arguments(monkeypatch, *arguments)
        assert not resuming()
    write_json(tmp_path / "train_config.json", {"resume": True})
    for path in (tmp_path, tmp_path / "train_config.json"):
        _arguments(monkeypatch, f"--config_path={path}")
        assert resuming(), "a run that was itself resumed says so in its file"
        _arguments(monkeypatch, f"--config_path={path}", "--resume=false")
        assert not resuming()
