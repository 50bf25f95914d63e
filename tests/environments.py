"""Virtual environments of their own, for tests of what is installed and of other packages' tools."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def new_environment(folder: Path, *requirements: str) -> Path:
    """Install `requirements` (as uv takes them; `.` is this repository) in `folder`; returns its `bin`."""
    uv = _uv()
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *requirements], cwd=ROOT, check=True)
    return folder / "bin"


def packages_beside(folder: Path, *requirements: str) -> Path:
    """Install packages alone, without what they need, in `folder`, for PYTHONPATH."""
    command = [
        _uv(),
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        sys.executable,
        "--target",
        folder,
    ]
    subprocess.run([*command, *requirements], cwd=ROOT, check=True)
    return folder


def _uv() -> str:
    own = ROOT / ".uv" / "bin" / "uv"
    uv = str(own) if own.is_file() else shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here, which installs packages: run `make test` once")
    return uv
