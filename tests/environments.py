"""Virtual environments of their own, for tests of what is installed and of other packages' tools."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def new_environment(folder: Path, *requirements: str) -> Path:
    """Install `requirements` (as uv takes them; `.` is this repository) in `folder`; returns its `bin`."""
    own = ROOT / ".uv" / "bin" / "uv"
    uv = str(own) if own.is_file() else shutil.which("uv")
    if uv is None:
        pytest.skip("no uv here, which makes the environment: run `make test` once")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run([uv, "pip", "install", "--quiet", "--python", python, *requirements], cwd=ROOT, check=True)
    return folder / "bin"
