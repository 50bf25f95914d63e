"""The ablation's page quotes what its raw JSON says."""

import json
import re
from pathlib import Path

import pytest

from aegis_eval.pages.ablation import format_table
from aegis_eval.results.frontier import AblatedRun, Frontier

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "ablation.md").read_text()
_RESULTS = _ROOT / "benchmarks" / "results" / "2026-11-23-ablation"


@pytest.mark.parametrize("name", sorted(path.name for path in _RESULTS.glob("*.json")))
def test_tables_are_those_of_the_json(name: str) -> None:
    runs = [AblatedRun(**run) for run in json.loads((_RESULTS / name).read_text())["runs"]]
    rows = format_table(Frontier.of(runs).to_dict()).splitlines()
    for row in rows[3:]:
        assert row in _PAGE


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", _PAGE):
        assert (_ROOT / "docs" / link).exists(), link
