"""Rollouts as `lerobot-eval` leaves them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from aegis_eval.results.rollouts import read_rollouts
from aegis_eval.statistics.intervals import wilson_interval
from aegis_policy.support.errors import AegisError


def test_success_is_read_per_task_with_intervals_and_videos(finished_runs: SimpleNamespace):
    rollouts = read_rollouts(finished_runs.aegis / "eval")
    assert [(task.task, task.episodes) for task in rollouts.tasks] == [("reach", 40), ("pick", 30)]
    assert rollouts.overall.episodes == 70
    assert rollouts.overall.successes == sum(task.successes for task in rollouts.tasks)
    assert rollouts.overall.ci == wilson_interval(rollouts.overall.successes, 70)


def test_videos_are_found_after_the_folder_moved_and_know_how_they_ended(finished_runs: SimpleNamespace):
    videos = read_rollouts(finished_runs.aegis / "eval").videos
    assert [(video.task, video.episode, video.success) for video in videos] == [
        ("reach", 0, True),
        ("reach", 1, False),
        ("pick", 0, True),
        ("pick", 1, False),
    ]
    assert all(video.path.stat().st_size > 0 for video in videos)
    assert all(video.task in str(video.path) for video in videos)


@pytest.mark.parametrize(
    "content",
    [None, "{", "{}", "[" * 100_000, '{"per_task": [{"task_group": "reach"}]}', '{"per_task": []}'],
    ids=["none", "half", "empty", "deep", "no metrics", "no tasks"],
)
def test_a_folder_that_is_no_evaluation_is_named(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "eval_info.json").write_text(content)
    with pytest.raises(AegisError, match="lerobot-eval"):
        read_rollouts(tmp_path)
