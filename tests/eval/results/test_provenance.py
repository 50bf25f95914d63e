"""A result names the code it was made with."""

import subprocess
from pathlib import Path

import pytest
import torch

from aegis_eval.results import provenance

ROOT = Path(__file__).parents[3]


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no checkout")
def test_the_commit_is_that_of_this_checkout() -> None:
    commit, _, changes = (provenance.git_commit() or "").partition("+")
    assert commit and git("rev-parse", "HEAD").startswith(commit)
    assert bool(changes) == bool(git("status", "--porcelain", "--untracked-files=no"))


def test_somebody_elses_checkout_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(tmp_path), *author, "commit", "-qm", "a", "--allow-empty"], check=True)
    installed = tmp_path / ".venv" / "lib" / "aegis_eval" / "results" / "provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.git_commit() is None


def test_who_does_not_use_the_gpu_asks_for_its_name_without_taking_hold_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "held" if used else pytest.fail("held"))
    done = subprocess.CompletedProcess([], 0, stdout="H200\n")
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", lambda *_, **__: done)
        assert provenance._gpu.__wrapped__() == "H200"
    used = True
    assert provenance._gpu.__wrapped__() == "held"
