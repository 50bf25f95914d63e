"""Sections of the report to look at: rollout videos, and questions with their images."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from aegis_eval.pages import html as page
from aegis_eval.questions.tabletop import TABLETOP, sample_images
from aegis_eval.results.rollouts import EpisodeVideo, read_rollouts
from aegis_eval.results.run import Json, RunSummary


def films(runs: Sequence[RunSummary], per_task: int) -> str:
    """Up to `per_task` videos of every run and task."""
    blocks = []
    for run in runs:
        chosen = list(_choose_videos(run.rollouts.videos, per_task)) if run.rollouts is not None else []
        shown = []
        for video in chosen:
            outcome = "success" if video.success else "failure"
            tone = "good" if video.success else "bad"
            caption = f'{escape(video.task)}, episode {video.episode}: <span class="{tone}">{outcome}</span>'
            alt = f"Rollout of {run.name}, task {video.task}, episode {video.episode}: {outcome}"
            shown.append(page.film(video.path, alt, caption))
        if shown:
            blocks.append(
                f'<h3 class="films-of">{escape(run.name)}</h3><div class="films">{"".join(shown)}</div>'
            )
    return f"<h2>Rollouts</h2>{''.join(blocks)}" if blocks else ""


def films_side_by_side(
    rollouts: Mapping[str, Path], instruction: Callable[[str, int], str], episodes: int = 2
) -> str:
    """The same initial states under every protection, those first that tell the protections apart.

    Args:
        rollouts: name -> output folder of `lerobot-eval`, all with the same seed.
        instruction: (task, episode) -> what the policies were told.
        episodes: initial states of each task.
    """
    videos = {
        name: {(v.task, v.episode): v for v in read_rollouts(folder).videos}
        for name, folder in rollouts.items()
    }
    shared = set.intersection(*(set(found) for found in videos.values())) if videos else set()
    blocks = []
    for task in sorted({task for task, _ in shared}):
        states = sorted(
            (key for key in shared if key[0] == task),
            key=lambda key: (len({found[key].success for found in videos.values()}) == 1, key[1]),
        )
        for key in states[:episodes]:
            shown = []
            for name, found in videos.items():
                outcome, tone = ("success", "good") if found[key].success else ("failure", "bad")
                alt = f"Rollout of {name}, task {task}, episode {key[1]}: {outcome}"
                caption = f'{escape(name)}: <span class="{tone}">{outcome}</span>'
                shown.append(page.film(found[key].path, alt, caption))
            told = escape(instruction(*key))
            heading = f'<h3 class="films-of">{escape(task)}, initial state {key[1]}: “{told}”</h3>'
            blocks.append(f'{heading}<div class="films">{"".join(shown)}</div>')
    if not blocks:
        return ""
    text = '<p class="soft">The same scene and instruction under each protection, first seed.</p>'
    return f"<h2>Side by side</h2>{text}{''.join(blocks)}"


def _choose_videos(videos: Iterable[EpisodeVideo], per_task: int) -> Iterable[EpisodeVideo]:
    """Of every task the first success, the first failure, then whatever comes first."""
    by_task: dict[str, list[EpisodeVideo]] = {}
    for video in videos:
        by_task.setdefault(video.task, []).append(video)
    for found in by_task.values():
        firsts = [next((v for v in found if v.success is wanted), None) for wanted in (True, False)]
        ranked = [v for v in firsts if v is not None]
        ranked += [v for v in found if v not in ranked]
        yield from sorted(ranked[:per_task], key=lambda video: video.episode)


def questions(runs: Sequence[RunSummary], count: int) -> str:
    """`count` questions with image if it can be rendered again, right answer, and what every model said."""
    answered = {run.name: {line["id"]: line for line in run.answers} for run in runs if run.answers}
    if not answered:
        return ""
    chosen = _choose_examples(answered, count)
    images = sample_images(line["id"] for line in chosen if line["id"].split("/")[0] in TABLETOP)
    cards = []
    for line in chosen:
        rows = [("right answer", escape(line["answer"]))]
        if "pretrained" in line:
            rows.append(("pretrained", _judged(line["pretrained"], line["pretrained_correct"])))
        for name, lines in answered.items():
            if line["id"] in lines:
                given = lines[line["id"]]
                rows.append((escape(name), _judged(given["given"], given["correct"])))
        listed = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in rows)
        shown = ""
        if line["id"] in images:
            shown = page.picture(images[line["id"]], f"Tabletop scene of the question: {line['question']}")
        cards.append(f'<div class="card">{shown}<h3>{escape(line["question"])}</h3><dl>{listed}</dl></div>')
    return f'<h2>Questions, before and after</h2><div class="grid">{"".join(cards)}</div>'


def _choose_examples(answered: Mapping[str, Mapping[str, Json]], count: int) -> list[Json]:
    """One a scene, types taking turns; half the places are for questions on which models disagree."""
    lines = list(next(iter(answered.values())).values())

    def verdicts(line: Json) -> set[bool]:
        found = {bool(other[line["id"]]["correct"]) for other in answered.values() if line["id"] in other}
        return found | ({bool(line["pretrained_correct"])} if "pretrained_correct" in line else set())

    disputed = _take_turns([line for line in lines if len(verdicts(line)) > 1])
    agreed = _take_turns([line for line in lines if len(verdicts(line)) == 1])
    chosen: dict[str, Json] = {}
    for candidates, limit in ((disputed, (count + 1) // 2), (agreed, count), (disputed, count)):
        for line in candidates:
            if len(chosen) < limit:
                chosen.setdefault(line["id"].rpartition("/")[0], line)
    return list(chosen.values())


def _take_turns(lines: Sequence[Json]) -> list[Json]:
    """One of each type, then the next of each."""
    seen: dict[str, int] = {}
    ranked = []
    for line in lines:
        seen[line["type"]] = seen.get(line["type"], 0) + 1
        ranked.append((seen[line["type"]], line))
    return [line for _, line in sorted(ranked, key=lambda pair: pair[0])]


def _judged(text: str, correct: bool) -> str:
    tone, word = ("good", "right") if correct else ("bad", "wrong")
    return f'{escape(text) or "(nothing)"} <span class="{tone}">({word})</span>'
