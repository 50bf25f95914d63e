"""The documentation builds into a site: links between pages, headings and files of the repository lead somewhere."""

import subprocess
import sys
from pathlib import Path

import pytest

_DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.tools
def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-d"]
    done = subprocess.run(
        [*command, tmp_path / "cache", _DOCS, tmp_path / "site"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in _DOCS.glob("*.md")} <= {
        path.stem for path in (tmp_path / "site").glob("*.html")
    }
    reference = (tmp_path / "site" / "api.html").read_text()
    for name in ("GradientIsolator", "VLMBackbone.answer", "vqa_accuracy", "AegisConfig"):
        assert f"{name}" in reference
    assert "ten of them in the official data" in reference, "docstrings, not names alone"
