"""The page of a comparison, written again from its raw JSON."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report
from aegis_eval.results.compared import Compared
from aegis_eval.results.comparison import Comparison
from aegis_eval.results.verdicts import headline, verdicts


class _Text(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.open, self.labels = "", [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        self.labels += [value for key, value in attrs if key == "aria-label"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(comparison_results: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("comparison")
    (folder / "comparison.json").write_text(json.dumps(comparison_results))
    report(ReportConfig(folder))
    return folder


def test_the_first_screen_says_what_was_compared_and_what_won(
    written: Path, comparison_results: dict
) -> None:
    page = _Text((written / "report.html").read_text())
    assert page.open == []
    start = page.text[: page.text.index("All protections at the same learning rate")]
    assert "7 protections of the same vision-language model, 2 seeds each, trained for 20 steps" in start
    assert "freeze and stop_gradient are the same training" in start
    compared = Compared.of(comparison_results)
    common, own = (
        Comparison.of(runs, compared.questions)
        for runs in (compared.at_common_rate(), compared.at_own_rates())
    )
    at_common, at_own = start.split("With each protection at its own:")
    sentences = verdicts(common, ours="aegis", benchmark="tabletop")
    assert len(sentences) == 5
    for sentence in (headline(common, benchmark="tabletop"), *sentences):
        assert sentence.replace("`", "") in at_common
    won, kept = (
        headline(own, benchmark="tabletop"),
        verdicts(own, ours="aegis", benchmark="tabletop")[-1],
    )
    assert f"{won} {kept}".replace("`", "") in at_own
    assert any(
        label and label.startswith("Success on test scenes against questions") for label in page.labels
    )


def test_the_way_of_a_training_and_back_is_drawn_where_it_was_followed(
    comparison_results: dict, written: Path, tmp_path: Path
) -> None:
    place = {"at": 4, "outcomes": "10", "answers": "1110"}
    runs = [
        {**run, "curve": {"step": [place], "alpha": [place]} if run["seed"] == 0 else {}}
        for run in comparison_results["runs"]
    ]
    (tmp_path / "comparison.json").write_text(json.dumps({**comparison_results, "runs": runs}))
    report(ReportConfig(tmp_path))
    pages = [(folder / "report.html").read_text() for folder in (written, tmp_path)]
    assert ["(aegis-merge); 1 of the seeds" in _Text(page).text for page in pages] == [False, True]
    assert pages[1].count("stroke-dasharray") > pages[0].count("stroke-dasharray") + 6


def test_where_only_the_best_trials_ran_the_page_shows_those(
    comparison_results: dict, tmp_path: Path
) -> None:
    config = {**comparison_results["config"], "trials": "trials.json"}
    (tmp_path / "comparison.json").write_text(json.dumps({**comparison_results, "config": config}))
    report(ReportConfig(tmp_path))
    page = _Text((tmp_path / "report.html").read_text())
    assert page.open == [] and "at the same learning rate" not in page.text
    assert "Each as it was best on validation data" in page.text
    assert set(json.loads((tmp_path / "summary.json").read_text())) == {"tuned"}


def test_names_in_sentences_are_set_as_code(written: Path) -> None:
    html = (written / "report.html").read_text()
    assert "<code>none</code> against <code>freeze</code>" in html
    assert "`" not in html


def test_a_quick_run_says_that_its_numbers_mean_nothing(comparison_results: dict, tmp_path: Path) -> None:
    quick = {**comparison_results, "config": {**comparison_results["config"], "quick": True}}
    (tmp_path / "comparison.json").write_text(json.dumps(quick))
    report(ReportConfig(tmp_path))
    for name in ("report.html", "comparison.md"):
        assert "its numbers mean nothing" in (tmp_path / name).read_text()


def test_every_protection_has_a_row_in_both_tables(written: Path, comparison_results: dict) -> None:
    table = (written / "comparison.md").read_text()
    for name in comparison_results["protections"]:
        assert f"| {name} | 0.0003 |" in table and f"| {name} | 0.0001 |" in table
    assert table.count("| 80 [58, 92] of 20 |") == 2 * len(comparison_results["protections"]), (
        "rollouts that followed"
    )
    assert set(json.loads((written / "summary.json").read_text())) == {"common", "tuned"}


def test_protections_keep_their_order_however_the_runs_lie(comparison_results: dict, tmp_path: Path) -> None:
    shuffled = {**comparison_results, "runs": comparison_results["runs"][::-1]}
    (tmp_path / "comparison.json").write_text(json.dumps(shuffled))
    report(ReportConfig(tmp_path))
    names = list(comparison_results["protections"])
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    named = [name for line in lines for name in names if line.startswith(f"| {name} |")]
    assert named == [*names, *(name for name in names if name != "aegis")] * 2


def test_the_json_alone_gives_the_same_page_again(written: Path, tmp_path: Path) -> None:
    report(ReportConfig(written / "comparison.json", output_dir=tmp_path / "titled", title="mine & yours"))
    assert "<h1>mine &amp; yours</h1>" in (tmp_path / "titled" / "report.html").read_text()
    report(ReportConfig(written / "comparison.json", output_dir=tmp_path))
    for name in ("report.html", "comparison.md", "summary.json"):
        assert (tmp_path / name).read_text() == (written / name).read_text()
