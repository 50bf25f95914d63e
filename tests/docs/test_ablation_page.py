"""Pages of ablations quote what their raw JSON says."""

import json
import re
from pathlib import Path

import pytest

from aegis_eval.pages.ablation import format_table
from aegis_eval.results.frontier import AblatedRun, Frontier

_ROOT = Path(__file__).parents[2]
_RESULTS = _ROOT / "benchmarks" / "results"
_PAGES = {
    _ROOT / "docs" / "ablation.md": _RESULTS / "2026-11-29-anchor-rules",
    _RESULTS / "2026-11-23-ablation" / "tables.md": _RESULTS / "2026-11-23-ablation",
}
"""Page -> the folder of what it is about."""


@pytest.mark.parametrize(
    ("page", "file"),
    [(page, file) for page, folder in _PAGES.items() for file in sorted(folder.glob("*val.json"))]
    + [(_RESULTS / "2026-11-23-ablation" / "tables.md", _RESULTS / "2026-11-23-ablation" / "ablation.json")],
    ids=lambda path: path.stem,
)
def test_tables_are_those_of_the_json(page: Path, file: Path) -> None:
    runs = [AblatedRun(**run) for run in json.loads(file.read_text())["runs"]]
    rows = format_table(Frontier.of(runs).to_dict()).splitlines()
    text = page.read_text()
    for row in rows[3:]:
        assert row in text


@pytest.mark.parametrize("page", _PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link
