"""What `lerobot-eval` left behind: success per task with intervals, and its videos."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aegis_eval.statistics.intervals import Interval, wilson_interval
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json

ALL_TASKS = "all"


@dataclass(frozen=True)
class EpisodeVideo:
    """The video of one episode and how the episode ended."""

    path: Path
    task: str
    episode: int
    success: bool


@dataclass(frozen=True)
class TaskSuccess:
    """Whether each episode of one task succeeded, in their order; Wilson's interval of the rate."""

    task: str
    outcomes: tuple[bool, ...]

    @property
    def successes(self) -> int:
        return sum(self.outcomes)

    @property
    def episodes(self) -> int:
        return len(self.outcomes)

    @property
    def rate(self) -> float:
        return self.successes / self.episodes if self.episodes else float("nan")

    @property
    def ci(self) -> Interval:
        return wilson_interval(self.successes, self.episodes)


@dataclass(frozen=True)
class Rollouts:
    """Success per task in the order of the evaluation, over all tasks, and the videos that exist."""

    tasks: tuple[TaskSuccess, ...]
    videos: tuple[EpisodeVideo, ...]

    @property
    def overall(self) -> TaskSuccess:
        """All episodes of all tasks together."""
        return TaskSuccess(ALL_TASKS, tuple(outcome for task in self.tasks for outcome in task.outcomes))


def read_rollouts(directory: Path | str) -> Rollouts:
    """Read the `eval_info.json` of an evaluation's output folder.

    A suite of several tasks (`task_group` with more than one `task_id`) counts as one task of its name.

    Raises:
        AegisError: there is no `eval_info.json`, or it holds no episodes.
    """
    directory = Path(directory)
    source = directory / "eval_info.json"
    try:
        entries = read_json(source)["per_task"]
        groups: dict[str, list[bool]] = {}
        videos: list[EpisodeVideo] = []
        for entry in entries:
            task, metrics = str(entry["task_group"]), entry["metrics"]
            successes = [bool(success) for success in metrics["successes"]]
            groups.setdefault(task, []).extend(successes)
            videos += _videos(directory, task, metrics.get("video_paths", []), successes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AegisError(
            f"{source} is not what lerobot-eval writes ({type(error).__name__}: {one_line(error)}): name the "
            "--output_dir of a finished evaluation."
        ) from error
    if not any(groups.values()):
        raise AegisError(
            f"{source} holds no episodes: run lerobot-eval with --eval.n_episodes of at least 1."
        )
    tasks = tuple(TaskSuccess(task, tuple(found)) for task, found in groups.items())
    return Rollouts(tasks, tuple(videos))


def _videos(
    directory: Path, task: str, names: Sequence[str], successes: Sequence[bool]
) -> list[EpisodeVideo]:
    """Video i of a task shows its episode i. Paths were relative to where the evaluation ran."""
    found = []
    for episode, (name, success) in enumerate(zip(names, successes, strict=False)):
        recorded = Path(name)
        candidates = [recorded, *(directory / Path(*recorded.parts[-depth:]) for depth in (3, 2, 1))]
        existing = [path for path in candidates if path.is_file()]
        if existing:
            found.append(EpisodeVideo(existing[0], task, episode, success))
    return found
