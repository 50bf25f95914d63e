"""Rows of a comparison: one file a run, from which `comparison.json` is put together and to which anybody may add."""

from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.results.compared import Compared, ComparedRun
from aegis_eval.results.rows import (
    Validation,
    best_lrs,
    compared_run,
    is_row,
    validation,
    with_added_rows,
)
from aegis_eval.results.run_file import RunFile
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import write_json


def file_of(run: ComparedRun, setting: dict) -> RunFile:
    """The result file that such a run would have left."""
    answers = {
        f"vqa-{name}": {"accuracy": 0.5, "correct": bits, "scenes": [i // 2 for i in range(len(bits))]}
        for name, bits in run.answers.items()
    }
    return RunFile(
        run.protection,
        run.lr,
        run.seed,
        folder=run.folder,
        flags=[f"--policy.protection={run.protection}"],
        setting=setting,
        measured={
            "training": run.curves,
            **{f"rollouts-{split}": outcomes for split, outcomes in run.rollouts.items()},
            **answers,
            "swap": run.swaps,
            "drift": {"drift": run.drift, "per_layer": run.drift_per_layer},
        },
        stages={name: {"command": [], "seconds": seconds} for name, seconds in run.seconds.items()},
    )


def with_validation(run: RunFile, success: str, accuracy: float) -> RunFile:
    found = {"accuracy": accuracy, "pretrained": {"accuracy": 0.8}}
    return replace(
        run, measured={**run.measured, "rollouts-val": {"reach": success}, "vqa-tabletop-val": found}
    )


@pytest.fixture
def published(comparison_results: dict, tmp_path: Path) -> Path:
    """A folder with a `comparison.json`, and, in a folder of its own, the files of the runs of one more protection."""
    results = deepcopy(comparison_results)
    (tmp_path / "new").mkdir()
    for run in (ComparedRun(**run) for run in results["runs"]):
        if run.protection == "lora" and run.lr == results["config"]["lr_backbone"]:
            mine = replace(run, protection="mine", folder=f"mine-{run.seed}")
            file_of(mine, {"steps": 20, "task": "reach", "dataset": "elsewhere"}).write(
                tmp_path / "new" / f"mine-lr0.0003-seed{run.seed}.json"
            )
    write_json(tmp_path / "comparison.json", results)
    return tmp_path


def add(folder: Path, **changes) -> None:
    """Put the new files beside the comparison."""
    for file in (folder / "new").iterdir():
        replace(RunFile.read(file), **changes).write(folder / file.name)


def test_the_places_of_a_curve_are_in_their_order(comparison_results: dict) -> None:
    run = ComparedRun(**comparison_results["runs"][0])
    file, measured = file_of(run, {}), {}
    for place, outcomes in (("step20", "01"), ("step4", "00"), ("alpha0.5", "11")):
        measured |= {f"rollouts-{place}": {"reach": outcomes}, f"vqa-{place}": {"correct": outcomes[::-1]}}
    measured["vqa-step40"] = {"correct": "1"}  # not rolled out yet
    curve = compared_run(replace(file, measured={**file.measured, **measured})).curve
    assert curve == {
        "step": [
            {"at": 4.0, "outcomes": "00", "answers": "00"},
            {"at": 20.0, "outcomes": "01", "answers": "10"},
        ],
        "alpha": [{"at": 0.5, "outcomes": "11", "answers": "11"}],
    }


def test_a_run_is_the_same_again_from_its_file(comparison_results: dict, tmp_path: Path) -> None:
    for run in (ComparedRun(**run) for run in comparison_results["runs"]):
        file_of(run, {}).write(tmp_path / "run.json")
        again = RunFile.read(tmp_path / "run.json")
        assert is_row(again) and compared_run(again) == run
        assert not is_row(replace(again, measured={"training": {}}))


def test_files_beside_a_comparison_are_further_rows_of_its_page(published: Path) -> None:
    before = report(ReportConfig(published)).read_text()
    assert "mine" not in before
    add(published)
    assert "mine" in report(ReportConfig(published)).read_text()
    table = (published / "comparison.md").read_text()
    (lora,) = (line for line in table.splitlines() if line.startswith("| lora | 0.0003 |"))
    mine, *_ = (line for line in table.splitlines() if line.startswith("| mine |"))
    assert mine == lora.replace("| lora |", "| mine |"), "the same outcomes give the same row"


def test_a_row_of_another_setting_or_of_other_questions_is_refused(published: Path) -> None:
    add(published, setting={"steps": 21})
    with pytest.raises(AegisError, match=r"--steps=21\) than the comparison.json beside it \(--steps=20\)"):
        report(ReportConfig(published))
    other = {name: {"scenes": [7]} for name in ("vqa-tabletop", "vqa-tabletop_robot")}
    add(published, measured=other)
    with pytest.raises(AegisError, match="answers other questions of tabletop"):
        report(ReportConfig(published))


def test_a_row_without_all_seeds_is_refused(published: Path, comparison_results: dict) -> None:
    add(published)
    (published / "mine-lr0.0003-seed1.json").unlink()
    with pytest.raises(
        AegisError, match=r"files of mine at learning rate 0.0003 are whole for the seeds \[0\]"
    ):
        report(ReportConfig(published))
    (published / "mine-lr0.0003-seed0.json").write_text("{}")
    with pytest.raises(AegisError, match="is not the result file of a run"):
        report(ReportConfig(published))


def test_runs_that_the_comparison_holds_are_no_further_rows(
    published: Path, comparison_results: dict
) -> None:
    run = ComparedRun(**comparison_results["runs"][0])
    file_of(run, {}).write(published / "none-lr0.0003-seed0.json")
    compared = Compared.of(comparison_results)
    assert with_added_rows(compared, published) is compared


def test_an_added_protection_is_tuned_once_it_was_tried_at_every_rate(
    published: Path, comparison_results: dict
) -> None:
    results = deepcopy(comparison_results)
    results["config"]["lr_grid"] = [1e-4, 3e-4]
    compared = Compared.of(results)
    first = RunFile.read(published / "new" / "mine-lr0.0003-seed0.json")
    add(published)
    with_validation(first, "1100", 0.4).write(published / "mine-lr0.0003-seed0.json")
    assert "mine" not in with_added_rows(compared, published).tuned
    lower = with_validation(replace(first, lr=1e-4, measured={}), "1110", 0.4)
    lower.write(published / "mine-lr0.0001-seed0.json")
    with pytest.raises(AegisError, match=r"mine at learning rate 0.0001 are whole for the seeds \[\]"):
        with_added_rows(compared, published)
    with_validation(replace(first, lr=1e-4, measured={}), "1000", 0.4).write(
        published / "mine-lr0.0001-seed0.json"
    )
    joined = with_added_rows(compared, published)
    assert joined.tuned["mine"] == 3e-4
    assert [each["lr"] for each in joined.tuning if each["protection"] == "mine"] == [1e-4, 3e-4]
    assert joined.protections["mine"] == ["--policy.protection=mine"]


def test_a_learning_rate_is_scored_by_both_skills_and_ties_go_to_the_lower(comparison_results: dict) -> None:
    run = with_validation(file_of(ComparedRun(**comparison_results["runs"][0]), {}), "1101", 0.6)
    score = validation(run)
    assert score is not None and asdict(score) == {
        "protection": "none",
        "lr": 3e-4,
        "success": 0.75,
        "retained": pytest.approx(0.75),
    }
    assert validation(replace(run, measured={"rollouts-val": {"reach": "1"}})) is None
    scores = [
        Validation("a", lr, success, kept) for lr, success, kept in ((3, 0.5, 0.9), (1, 0.9, 0.5), (2, 0, 1))
    ]
    assert best_lrs(scores) == {"a": 1}
