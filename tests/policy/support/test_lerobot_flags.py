"""Whether a training is resumed and which part of a dataset it reads, as its command line says."""

import sys
from pathlib import Path
from typing import Any

import pytest

from aegis_policy.support.json_files import write_json
from aegis_policy.support.lerobot_flags import chosen_episodes, dataset_option, resuming


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


@pytest.mark.parametrize(
    "said, read",
    [("true", True), ("True", True), ("no", False), ("[0, 2]", [0, 2]), ("[", None), ("~", None)],
)
def test_an_option_of_the_dataset_is_what_lerobot_takes_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, read: Any
) -> None:
    _arguments(monkeypatch, f"--dataset.streaming={said}")
    assert dataset_option("streaming") == read
    for name in ("train_config.json", "training.yaml"):
        (tmp_path / name).write_text(f"dataset:\n  streaming: {said}\n")
        _arguments(monkeypatch, f"--config_path={tmp_path / name}")
        assert dataset_option("streaming") == read
        assert dataset_option("another") is None
    _arguments(monkeypatch, f"--dataset.episodes={said}")
    assert chosen_episodes() == (read if isinstance(read, list) else None)
