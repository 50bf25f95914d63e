"""`aegis-baseline`, and its line in the tables of success."""

import json
from functools import cache
from pathlib import Path

import pytest

from aegis_envs.tabletop import baselines
from aegis_envs.tabletop.baselines import ARMS
from aegis_eval.commands.baseline import BaselineConfig
from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.baseline import baseline
from aegis_eval.commands.work.report import report
from aegis_eval.experiments.baselines import of_comparison
from aegis_eval.results.baselines import EXPERT, read_baselines, share_estimate
from aegis_eval.results.compared import Compared
from aegis_eval.results.comparison import Comparison
from aegis_eval.results.verdicts import verdicts
from aegis_eval.statistics.intervals import wilson_interval
from aegis_eval.statistics.text import rate
from aegis_policy.support.errors import AegisError

_PUBLISHED = Path(__file__).parents[3] / "benchmarks" / "results" / "2026-11-29-baselines"
success_shares = cache(baselines.success_shares)


@pytest.fixture(autouse=True)
def _each_scene_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tests ask for the same scenes, and a scene takes a tenth of a second."""
    for asking in ("commands.work.baseline", "experiments.baselines"):
        monkeypatch.setattr(f"aegis_eval.{asking}.success_shares", success_shares)


def test_it_prints_and_writes_what_each_arm_did_in_the_scenes_that_lerobot_eval_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = baseline(BaselineConfig("reach", episodes=10, output=tmp_path / "baseline.json"))
    written = json.loads(output.read_text())
    shares = success_shares("reach", "test", range(1000, 1010))
    assert read_baselines(output) == {name: {"reach": shares[name]} for name in ARMS}
    nearest = written["success"]["nearest object"]["reach"]
    count = int(sum(shares["nearest object"]))
    assert nearest == {"value": count / 10, "ci": list(wilson_interval(count, 10))}
    assert written["provenance"]["seed"] == 1000 and written["split"] == "test"
    assert f"{10 * count}.0 [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"episodes": 0}, "--episodes=0 must be at least 1"),
        ({"task": "fly"}, "--task=fly is not a tabletop task"),
        ({"split": "val"}, "--split=val is not a tabletop split"),
        ({"seed": -1}, "--seed=-1 must be at least 0"),
    ],
)
def test_flags_that_cannot_be_are_refused(flags: dict, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=sentence):
        baseline(BaselineConfig(**flags, output=tmp_path / "baseline.json"))


def test_shares_that_are_no_counts_have_the_interval_of_a_bootstrap() -> None:
    found = share_estimate([0.5, 0.25] * 50)
    assert found.value == pytest.approx(0.375) and 0.34 < found.ci[0] < found.value < found.ci[1] < 0.41


def test_a_comparison_is_held_against_the_arms_in_its_own_scenes(comparison_results: dict) -> None:
    compared = Compared.of(comparison_results)
    nearest, any_of_them = of_comparison(compared)
    assert (
        nearest.success["unseen"]["reach"]
        == success_shares("reach", "unseen", range(1000, 1030))["nearest object"]
    )
    assert len(nearest.named["reach"]) == 10 and max(any_of_them.success["test"]["reach"]) <= 0.5
    found = Comparison.of(compared.at_common_rate(), compared.questions, [nearest, any_of_them])
    row, arm = found.protections["aegis"], found.baselines["nearest object"]
    difference = row.against_baselines["test"]["nearest object"]
    assert difference.value == pytest.approx(
        row.success["test"]["all"].value - arm.success["test"]["all"].value
    )
    assert difference.ci[0] < difference.value < difference.ci[1]
    sentences = verdicts(found, ours="aegis", benchmark="tabletop")
    assert len([each for each in sentences if "ignores its instruction: on test scenes `aegis`" in each]) == 2


def test_the_arms_stand_below_the_protections_in_every_table_and_are_measured_where_they_are_missing(
    comparison_results: dict, tmp_path: Path
) -> None:
    older = {key: value for key, value in comparison_results.items() if key != "baselines"}
    tables = []
    for folder, written in (("new", comparison_results), ("old", older)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "comparison.json").write_text(json.dumps(written))
        page = report(ReportConfig(tmp_path / folder))
        tables.append((tmp_path / folder / "comparison.md").read_text())
        assert page.read_text().count('<th scope="row">nearest object</th>') == 4, (
            "both tables, and two splits by task"
        )
    assert tables[0].count("| nearest object |  | 50.0 [33.2, 66.8] |") == 2
    (nearest, _) = of_comparison(Compared.of(older))
    share = 100 * sum(nearest.success["test"]["reach"]) / 30
    assert tables[1].count(f"| nearest object |  | {share:.1f} [") == 2


def test_a_comparison_whose_scenes_cannot_be_simulated_says_so(
    comparison_results: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise AegisError("no MuJoCo here.")

    monkeypatch.setattr("aegis_eval.experiments.baselines.success_shares", fails)
    older = {key: value for key, value in comparison_results.items() if key != "baselines"}
    (tmp_path / "comparison.json").write_text(json.dumps(older))
    report(ReportConfig(tmp_path))
    table = (tmp_path / "comparison.md").read_text()
    assert "nearest object" not in table and "reaches is not known here: aegis-baseline says it." in table


def test_a_page_of_runs_has_the_arms_of_a_file_beside_them_if_it_is_of_as_many_scenes(tmp_path: Path) -> None:
    info = {"per_task": [{"task_group": "reach", "metrics": {"successes": [True] * 4}}]}
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "eval_info.json").write_text(json.dumps(info))
    assert "aegis-baseline with the evaluations" in report(ReportConfig(tmp_path)).read_text()
    written = baseline(BaselineConfig(episodes=4, output=tmp_path / "baseline.json"))
    page = report(ReportConfig(tmp_path)).read_text()
    assert '<th scope="col">nearest object</th>' in page and "aegis-baseline with" not in page
    baseline(BaselineConfig(episodes=3, output=written))
    with pytest.raises(AegisError, match="is of 3 scenes of reach, and mine was rolled out in 4"):
        report(ReportConfig(tmp_path))


@pytest.mark.parametrize("shares", ["[1]", "[0.5, NaN]", "[2.0]", '["1"]', "null", "3"])
def test_what_is_no_output_of_it_is_refused(shares: str, tmp_path: Path) -> None:
    arms = shares if shares == "[1]" else f'{{"nearest object": {{"reach": {shares}}}}}'
    (tmp_path / "baseline.json").write_text(f'{{"arms": {arms}}}')
    with pytest.raises(AegisError, match="not what aegis-baseline writes"):
        read_baselines(tmp_path / "baseline.json")


@pytest.mark.parametrize("file", sorted(path.name for path in _PUBLISHED.glob("*.json")))
def test_the_published_lines_are_those_of_their_command(file: str) -> None:
    """Its table is what the JSON says, and the JSON what comes out; of ten seconds of scenes the first three."""
    written = json.loads((_PUBLISHED / file).read_text())
    task, split, *_ = file.removesuffix(".json").split("-")
    first = written["provenance"]["seed"]
    shares = success_shares(task, split, range(first, first + 3))
    assert EXPERT in shares and split == written["split"]
    assert {name: found[task][:3] for name, found in written["arms"].items()} == shares
    for name in ("nearest object", "any object"):
        found = share_estimate(written["arms"][name][task])
        assert written["success"][name][task] == {"value": found.value, "ci": list(found.ci)}
        assert rate(found) in (_PUBLISHED / "README.md").read_text() or first != 1000
