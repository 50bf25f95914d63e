"""Finding runs in a folder: what commands left there is what the report shows."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.results.run import find_runs
from aegis_eval.results.swap import SwapProbe, read_swaps
from aegis_eval.results.training_log import read_curves, write_metrics
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json


@pytest.fixture
def runs(finished_runs: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy of the finished runs, to add files to."""
    return Path(shutil.copytree(finished_runs.aegis.parent, tmp_path / "runs"))


def test_the_page_says_whether_a_run_listens_as_aegis_swap_found(runs: Path) -> None:
    (runs / "unprotected" / "swap.json").unlink()
    text = report(ReportConfig(runs)).read_text()
    assert "Does it listen?" in text and "46/50" in text and "22/25" in text and "41/50" not in text
    (runs / "aegis" / "swap.json").unlink()
    assert "Does it listen?" not in report(ReportConfig(runs)).read_text()


def test_every_task_of_a_probe_is_kept(tmp_path: Path) -> None:
    probes = [SwapProbe(task, "test", 5, 8, 4) for task in ("reach", "pick")]
    write_json(tmp_path / "swap.json", {"tasks": {probe.task: probe.to_dict() for probe in probes}})
    assert list(read_swaps(tmp_path / "swap.json")) == probes
    with pytest.raises(AegisError, match="not what aegis-swap writes"):
        read_swaps(tmp_path / "absent.json")


def test_curves_are_those_of_metrics_jsonl_and_without_it_those_of_the_log(runs: Path) -> None:
    run = runs / "aegis"
    logged = read_curves(run / "train.log")
    assert find_runs(runs)[0].curves == logged
    write_metrics({"loss": logged["loss"]}, run / "metrics.jsonl")
    assert find_runs(runs)[0].curves == {"loss": logged["loss"]}


def test_folders_of_several_results_are_several_runs_and_the_probe_is_their_parents(runs: Path) -> None:
    for part in ("eval", "vqa"):
        shutil.copytree(runs / "aegis" / part, runs / "aegis" / f"{part}-again")
    found = {run.name: run for run in find_runs(runs)}
    assert list(found) == [
        "aegis",
        "aegis/eval",
        "aegis/eval-again",
        "aegis/vqa",
        "aegis/vqa-again",
        "unprotected",
    ]
    assert len(found["aegis"].swaps) == 1 and found["aegis/eval"].swaps == ()
