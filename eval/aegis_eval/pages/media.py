"""What a page shows to look at: rollout videos, and questions with their images.

Which of them are shown is chosen here, so that few tell much; the markup is in `templates/parts.jinja`.
"""

import io
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from aegis_eval.pages.html import data_uri
from aegis_eval.questions.tabletop import TABLETOP, sample_images
from aegis_eval.results.rollouts import EpisodeVideo, Rollouts
from aegis_eval.results.run import Json, RunSummary
from aegis_policy.support.errors import AegisError

Instruction = Callable[[str, int], str]
"""(task, episode) -> what a policy was told in it."""


@dataclass(frozen=True)
class Film:
    """A rollout's video, inside the page; `label` is what a screen reader says."""

    source: str
    caption: str
    label: str
    success: bool


@dataclass(frozen=True)
class FilmRow:
    """Videos under one heading."""

    heading: str
    films: list[Film]


@dataclass(frozen=True)
class Given:
    """What a model answered."""

    model: str
    text: str
    correct: bool


@dataclass(frozen=True)
class QuestionCard:
    """A question with its right answer, what the models said, and its image if that could be rendered again."""

    question: str
    answer: str
    given: list[Given]
    image: str | None


def films(runs: Sequence[RunSummary], per_task: int) -> list[FilmRow]:
    """Up to `per_task` videos of every task, a row a run.

    Raises:
        AegisError: a video is none.
    """
    rows = []
    for run in runs:
        videos = run.rollouts.videos if run.rollouts is not None else ()
        shown = [
            _film(video, run.name, caption=f"{video.task}, episode {video.episode}")
            for video in _choose_videos(videos, per_task)
        ]
        rows.append(FilmRow(run.name, shown))
    return [row for row in rows if row.films]


def films_side_by_side(rollouts: Mapping[str, Rollouts], told: Instruction, per_task: int) -> list[FilmRow]:
    """The same initial states under every policy, those first that tell the policies apart; a row a state.

    Args:
        rollouts: name -> what it did, all with the same seed.
        told: the instruction of an episode.
        per_task: initial states of each task.

    Raises:
        AegisError: a video is none.
    """
    videos = {
        name: {(video.task, video.episode): video for video in found.videos}
        for name, found in rollouts.items()
    }
    shared = set.intersection(*(set(found) for found in videos.values())) if videos else set()
    rows = []
    for task in sorted({task for task, _ in shared}):
        states = sorted(
            (state for state in shared if state[0] == task),
            key=lambda state: (len({found[state].success for found in videos.values()}) == 1, state[1]),
        )
        for state in states[:per_task]:
            shown = [_film(found[state], name, caption=name) for name, found in videos.items()]
            rows.append(FilmRow(f"{task}, initial state {state[1]}: “{told(*state)}”", shown))
    return rows


def questions(runs: Sequence[RunSummary], count: int) -> list[QuestionCard]:
    """`count` questions from different scenes, types taking turns, half of them such that models disagree on."""
    answered = {run.name: {line["id"]: line for line in run.answers} for run in runs if run.answers}
    if not answered:
        return []
    chosen = _choose_examples(answered, count)
    images = sample_images(line["id"] for line in chosen if line["id"].split("/")[0] in TABLETOP)
    cards = []
    for line in chosen:
        given = [
            Given(name, lines[line["id"]]["given"], lines[line["id"]]["correct"])
            for name, lines in answered.items()
            if line["id"] in lines
        ]
        if "pretrained" in line:
            given.insert(0, Given("pretrained", line["pretrained"], line["pretrained_correct"]))
        image = _png(images[line["id"]]) if line["id"] in images else None
        cards.append(QuestionCard(line["question"], line["answer"], given, image))
    return cards


def _film(video: EpisodeVideo, run: str, caption: str) -> Film:
    outcome = "success" if video.success else "failure"
    return Film(
        source=data_uri("video/mp4", _browser_video(video.path)),
        caption=caption,
        label=f"Rollout of {run}, task {video.task}, episode {video.episode}: {outcome}",
        success=video.success,
    )


def _browser_video(path: Path) -> bytes:
    """The file itself if it is 4:2:0 H.264 already, which browsers play, else converted."""
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    probe = subprocess.run(
        [ffmpeg, "-hide_banner", "-i", str(path)], capture_output=True, text=True, check=False
    )
    if re.search(r"Video: h264\b.*\byuv420p\b", probe.stderr):
        return path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "video.mp4"
        command = [ffmpeg, "-v", "error", "-i", str(path), "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p"]
        # Even sides, as 4:2:0 needs them.
        command += ["-vf", "crop=trunc(iw/2)*2:trunc(ih/2)*2", "-movflags", "+faststart", str(converted)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or ["unknown reason"])[-1]
            raise AegisError(f"{path} cannot be shown as a video ({reason}): record the rollouts again.")
        return converted.read_bytes()


def _png(image_HW3: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image_HW3).save(buffer, format="PNG", optimize=True)
    return data_uri("image/png", buffer.getvalue())


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
