"""`aegis-report`: which folders it finds runs in, and what it says where there are none."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.results.run import find_runs
from aegis_policy.support.errors import AegisError


def test_any_folder_of_runs_gets_a_page(finished_runs: SimpleNamespace, tmp_path: Path) -> None:
    folder = finished_runs.aegis.parent
    found = {run.name: run for run in find_runs(folder)}
    assert set(found) == {"aegis", "unprotected"}
    assert found["aegis"].rollouts is not None and found["aegis"].vqa is not None
    assert found["aegis"].curves["loss"].steps
    page = report(ReportConfig(folder, output_dir=tmp_path, title="mine"))
    assert page == tmp_path / "report.html" and "<h1>mine</h1>" in page.read_text()


def test_a_folder_with_several_results_is_several_runs(
    finished_runs: SimpleNamespace, tmp_path: Path
) -> None:
    for name in ("first", "second"):
        (tmp_path / "all" / "evals" / name).mkdir(parents=True)
        (tmp_path / "all" / "evals" / name / "eval").symlink_to(finished_runs.aegis / "eval")
        info = (finished_runs.aegis / "eval" / "eval_info.json").read_text()
        (tmp_path / "all" / "evals" / name / "eval_info.json").write_text(info)
    assert {run.name for run in find_runs(tmp_path / "all")} == {"evals/first", "evals/second"}


def test_what_holds_no_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match="does not exist: name a folder of runs"):
        report(ReportConfig(tmp_path / "nowhere"))
    with pytest.raises(AegisError, match="holds no folder with results"):
        report(ReportConfig(tmp_path))
    (tmp_path / "comparison.json").write_text('{"questions": 1}')
    with pytest.raises(AegisError, match="not what aegis-compare writes"):
        report(ReportConfig(tmp_path))


@pytest.mark.parametrize("lacking", ["lr_backbone", "eval_episodes"])
def test_a_comparison_that_lacks_something_is_refused_in_a_sentence(
    comparison_results: dict, tmp_path: Path, lacking: str
) -> None:
    config = {key: value for key, value in comparison_results["config"].items() if key != lacking}
    (tmp_path / "comparison.json").write_text(json.dumps({**comparison_results, "config": config}))
    with pytest.raises(
        AegisError, match=rf"lacks something .*KeyError: '{lacking}'.*: give aegis-compare again"
    ):
        report(ReportConfig(tmp_path))


def test_a_comparison_of_which_runs_are_missing_is_refused_in_a_sentence(
    comparison_results: dict, tmp_path: Path
) -> None:
    (tmp_path / "comparison.json").write_text(
        json.dumps({**comparison_results, "runs": comparison_results["runs"][1:]})
    )
    with pytest.raises(AegisError, match="needs the same seeds of every protection"):
        report(ReportConfig(tmp_path))
