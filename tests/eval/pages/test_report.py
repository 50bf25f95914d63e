import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from aegis_eval.pages.numbers import between
from aegis_eval.pages.report import write_report
from aegis_eval.results.run import RunSummary, read_vqa
from aegis_eval.results.training_log import Curve
from aegis_policy.support.errors import AegisError


class Page(HTMLParser):
    """Collects tags with their attributes and checks that they close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def test_the_page_is_well_formed_and_loads_nothing_from_elsewhere(report_page: Path):
    page = Page(report_page.read_text())
    assert page.open == []
    for _, attributes in page.tags:
        for key in ("src", "href", "xlink:href"):
            assert (attributes.get(key) or "#").startswith(("data:", "#"))
    assert "http" not in re.sub(
        r'xmlns(:\w+)?="[^"]*"', "", re.sub(r"base64,[^\"]*", "", report_page.read_text())
    )


def test_both_skills_are_shown_with_intervals_and_alternatives_for_what_is_seen(report_page: Path):
    text = report_page.read_text()
    for expected in (
        "unprotected",
        "AEGIS",
        "reach",
        "pick",
        "episodes succeed, of 70",
        "blind",
        "pretrained",
    ):
        assert expected in text
    page = Page(text)
    figures = page.all("svg")
    assert len(figures) == 7, "success, answers and five figures of training"
    assert all(attributes["aria-label"] for attributes in figures)
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(page.all("img")) == 6
    videos = page.all("video")
    assert len(videos) == 8 and all(attributes["aria-label"] for attributes in videos)


def test_figures_take_their_colours_from_the_page_and_their_ids_do_not_collide(report_page: Path):
    text = report_page.read_text()
    assert not re.search(r"#0[1-4]0[1-4]0[0-9]", text), "a stand-in colour was left over"
    assert "var(--series-1)" in text and "prefers-color-scheme: dark" in text
    identities = [attributes["id"] for _, attributes in Page(text).tags if "id" in attributes]
    assert len(identities) == len(set(identities))


def test_what_users_and_models_say_cannot_break_the_page(run_summaries: list[RunSummary], tmp_path: Path):
    script = '<script>alert("x")</script>'
    first = run_summaries[0]
    told = [line | {"question": f"{line['question']} {script}", "given": script} for line in first.answers]
    page = write_report(
        tmp_path / "r.html",
        [replace(first, name=script, answers=told)],
        title=script,
        described={"by": script},
    )
    assert Page(page.read_text()).all("script") == []
    escaped = page.read_text().count("&lt;script&gt;alert(&#34;x&#34;)")
    assert escaped >= 6 * 3, "question, answer and name on every card"
    assert "--policy.path=run &lt;b&gt;" in page.read_text()


def test_the_page_answers_whether_the_policies_listen(report_page: Path):
    text = report_page.read_text()
    listening = text[text.index("Does it listen?") : text.index("What the backbone still answers")]
    for counted in ("41/50", "19/25", "46/50", "22/25"):
        assert counted in listening


@pytest.mark.parametrize("logged", ["blocked_energy", "subspace_blocked_energy"])
def test_figures_of_training_are_shown_under_the_names_of_old_and_new_logs(logged: str, tmp_path: Path):
    curve = Curve([1, 2], [0.25, 0.5])
    text = write_report(tmp_path / "r.html", [RunSummary("AEGIS", curves={logged: curve})]).read_text()
    assert "Energy blocked" in text and "AEGIS from 0.25 to 0.5" in text
    assert len(Page(text).all("svg")) == 1


def test_answers_of_two_runs_to_the_same_questions_are_compared_in_pairs(tmp_path: Path):
    def run(name: str, hits: str, **extra: str) -> RunSummary:
        lines = [
            {"id": f"q{number}", "scene": f"s{number // 2}", "correct": hit == "1", **extra}
            for number, hit in enumerate(hits)
        ]
        return RunSummary(name, answers=lines)

    runs = [run("base", "1111111111"), run("none", "0000011111"), run("other", "11")]
    table = between([*runs, run("aegis", "1111011111")])
    assert table is not None and table.header == ["run", "against base", "against none", "against other"]
    none, other, aegis = table.rows
    assert none[1].startswith("−50.0  [−") and none[2:] == ["", ""]
    assert other == ["other", "", "", ""], "it was asked other questions"
    assert aegis[1].startswith("−10.0  [−") and aegis[2].startswith("+40.0  [+")
    assert between(runs[::2]) is None, "nothing to compare"


def test_a_run_of_which_little_is_known_still_gets_a_page(run_summaries: list[RunSummary], tmp_path: Path):
    for run in (
        RunSummary("bare"),
        RunSummary("rolled", rollouts=run_summaries[0].rollouts),
        RunSummary("asked", vqa=run_summaries[0].vqa),
    ):
        path = write_report(tmp_path / f"{run.name}.html", [run])
        assert Page(path.read_text()).open == []


def test_what_is_not_a_result_is_named(run_summaries: list[RunSummary], tmp_path: Path):
    with pytest.raises(AegisError, match="different names, got none"):
        write_report(tmp_path / "r.html", [])
    with pytest.raises(AegisError, match="different names, got AEGIS, AEGIS"):
        write_report(tmp_path / "r.html", [run_summaries[1], run_summaries[1]])
    with pytest.raises(AegisError, match="not what aegis-vqa writes"):
        read_vqa(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_runs_of_the_same_scenes_are_filmed_side_by_side_under_what_they_were_told(
    run_summaries: list[RunSummary], tmp_path: Path
) -> None:
    page = write_report(
        tmp_path / "report.html",
        run_summaries,
        told=lambda task, episode: f"{task} number {episode}, please",
        videos_per_task=1,
    ).read_text()
    rows = re.findall(r'class="films-of">([^<]*)</h3>(.*?)</div>', page, re.DOTALL)
    assert len(rows) == len({task.task for task in run_summaries[0].rollouts.tasks})
    for heading, films in rows:
        assert re.search(r"(\w+), initial state (\d+): .\1 number \2, please.", heading)
        captions = re.findall(r"<figcaption>(\w+):", films)
        assert captions == [run.name for run in run_summaries]
