"""The tables of the result's page are what its raw JSON says, and one command makes them from it."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import draccus
import pytest

from aegis_eval.commands.compare import CompareConfig
from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.statistics.intervals import wilson_interval

_ROOT = Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "results.md").read_text()
_RESULTS = _ROOT / "benchmarks" / "results" / "2026-11-27-comparison"
_ARMS = _RESULTS.parent / "2026-11-29-baselines"
_DEMO = _RESULTS.parent / "2026-11-30-demo"


def _published_shares(task: str, split: str, seeds: range) -> dict[str, list[float]]:
    """What `test_baseline.py` holds against the simulator, which would take a quarter of a minute here."""
    found = json.loads((_ARMS / f"{task}-{split}.json").read_text())
    assert seeds == range(found["provenance"]["seed"], found["provenance"]["seed"] + 100)
    return {arm: shares[task] for arm, shares in found["arms"].items()}


def test_the_command_of_the_page_makes_its_tables_from_the_json_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(_ROOT)
    monkeypatch.setattr("aegis_eval.experiments.baselines.success_shares", _published_shares)
    ((runs, _),) = re.findall(r"^aegis-report --runs=(\S+) --output_dir=(\S+)$", _PAGE, re.M)
    made = report(ReportConfig(Path(runs), output_dir=tmp_path)).parent
    for name in ("comparison.md", "summary.json"):
        assert (made / name).read_text() == (_RESULTS / name).read_text()
    for row in (_RESULTS / "comparison.md").read_text().splitlines():
        assert not row.startswith("|") or row in _PAGE


def test_the_comparison_of_the_page_is_the_one_whose_results_are_there() -> None:
    (command,) = re.findall(r"^aegis-compare ((?:.*\\\n)*.*)$", _PAGE, re.M)
    arguments = shlex.split(command.replace("\\\n", " "))
    given = json.loads((_RESULTS / "comparison.json").read_text())["config"]
    asked = draccus.parse(config_class=CompareConfig, args=arguments)
    told = json.loads(json.dumps(asdict(asked), default=str))
    assert {name: told[name] for name in given} == given


@pytest.mark.parametrize("protection", ["none", "aegis"])
def test_the_demos_figures_are_those_of_its_json(protection: str) -> None:
    run, vqa = (json.loads((_DEMO / f"{protection}{kind}.json").read_text()) for kind in ("", "-vqa"))
    outcomes = run["measured"]["rollouts"]["bowl"]
    successes = outcomes.count("1")
    success = successes / len(outcomes), wilson_interval(successes, len(outcomes))
    assert f"| `{protection}` | {_percent(*success)} | {_percent(vqa['accuracy'], vqa['ci'])} |" in _PAGE
    before = vqa["pretrained"]
    assert f"| pretrained | | {_percent(before['accuracy'], before['ci'])} |" in _PAGE


@pytest.mark.parametrize("arm", ["nearest object", "any object"])
def test_the_line_of_an_arm_that_ignores_its_instruction_stands_in_every_table_of_success(arm: str) -> None:
    """Whole percents of `aegis-baseline`'s JSON: the longer training's, the demo's, and the README's."""

    def line(file: str, folder: Path = _ARMS) -> str:
        (found,) = json.loads((folder / file).read_text())["success"][arm].values()
        return _percent(found["value"], found["ci"])

    named = {"nearest object": "goes to the nearest object", "any object": "to any object"}[arm]
    assert re.search(
        rf"{named} \| {re.escape(line('reach-test.json'))} \| {re.escape(line('pick-test.json'))} \|", _PAGE
    )
    assert re.search(rf"{named} \| {re.escape(line('baseline.json', _DEMO))} \| \|", _PAGE)
    if arm == "nearest object":
        cells = [line(f"reach-{split}.json").replace(" %", "") for split in ("test", "unseen")]
        assert f"| {' | '.join(cells)} | |" in (_ROOT / "README.md").read_text()


def _percent(share: float, interval: Sequence[float]) -> str:
    low, high = (f"{100 * each:.0f}" for each in interval)
    return f"{100 * share:.0f} % [{low}, {high}]"


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", _PAGE):
        assert (_ROOT / "docs" / link).exists(), link
