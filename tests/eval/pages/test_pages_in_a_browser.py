"""The pages as a reader meets them: in chromium, on a phone and a desk, in light and dark, without a network."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from aegis_eval.commands.report import ReportConfig
from aegis_eval.commands.work.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here to open the pages in")

DURATIONS = """() => Promise.all([...document.querySelectorAll("video")].map(film => new Promise(done => {
    const tell = () => done(film.error ? 0 : film.duration);
    if (film.readyState > 0 || film.error) tell();
    film.onloadedmetadata = film.onerror = tell;
    film.load();
})))"""
PLAYED = """async () => {
    const film = document.querySelector("video");
    film.muted = true;
    await film.play();
    await new Promise(done => { film.ontimeupdate = () => film.currentTime > 0.2 && done(); });
    return film.currentTime;
}"""
PICTURES = "() => [...document.images].map(image => image.naturalWidth)"
OVERFLOW = "() => document.documentElement.scrollWidth - innerWidth"
CONTRASTS = """() => {
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const light = text => {
        const [r, g, b] = rgb(text).slice(0, 3).map(each => each / 255)
            .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        for (let each = element; each; each = each.parentElement) {
            const colour = rgb(getComputedStyle(each).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return getComputedStyle(each).backgroundColor;
        }
        return "rgb(255, 255, 255)";
    };
    const written = [...document.body.querySelectorAll("*:not(style)")].filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()));
    return written.map(element => {
        const drawn = element.closest("svg") !== null;
        const style = getComputedStyle(element);
        const [a, b] = [light(drawn ? style.fill : style.color), light(behind(element))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        return [ratio, element.textContent.trim().slice(0, 40), drawn];
    });
}"""
BACKGROUND = "() => getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).map(Number)"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def comparison_page(
    comparison_results: dict, finished_runs: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """With the videos and answers of a run of each protection."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "comparison.json").write_text(json.dumps(comparison_results))
    for protection in comparison_results["protections"]:
        of = finished_runs.aegis if protection == "aegis" else finished_runs.unprotected
        run = folder / "runs" / f"{protection}-lr0.0003-seed0"
        run.mkdir(parents=True)
        (run / "rollouts-test").symlink_to(of / "eval")
        (run / "vqa-tabletop").symlink_to(of / "vqa")
    return report(ReportConfig(folder))


@pytest.fixture(params=["report_page", "comparison_page"])
def opened(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Page]:
    """One of the two pages, on a phone in the dark, without a network; it must not even ask for anything else."""
    path: Path = request.getfixturevalue(request.param)
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark", offline=True)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]


def test_every_video_plays_and_every_picture_shows(opened: Page) -> None:
    durations, pictures = opened.evaluate(DURATIONS), opened.evaluate(PICTURES)
    assert len(durations) >= 8 and min(durations) > 0.5
    assert len(pictures) >= 6 and min(pictures) == 96
    assert opened.evaluate(PLAYED) > 0.2
    assert all(opened.locator("video").nth(i).get_attribute("aria-label") for i in range(len(durations)))


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows(opened: Page, width: int) -> None:
    opened.set_viewport_size({"width": width, "height": 844})
    assert opened.evaluate(OVERFLOW) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(opened: Page, scheme: str) -> None:
    opened.emulate_media(color_scheme=scheme)
    background = opened.evaluate(BACKGROUND)
    assert min(background) > 200 if scheme == "light" else max(background) < 50
    contrasts = opened.evaluate(CONTRASTS)
    for drawn, least in ((False, 4.5), (True, 4.2)):  # labels of figures are muted a little further
        found = [(ratio, text) for ratio, text, in_figure in contrasts if in_figure is drawn]
        assert len(found) > 30
        assert [each for each in found if each[0] < least] == [], "WCAG AA asks for 4.5 to 1"


def test_the_first_screen_on_a_desk_shows_the_conclusion_and_the_picture_of_both_skills(
    browser: Browser, comparison_page: Path
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(comparison_page.as_uri())
    for found in (page.locator("h1"), page.locator("ul li").first, page.locator("svg").first):
        box = found.bounding_box()
        assert box is not None and box["y"] < 900 and box["height"] > 0
    page.close()
