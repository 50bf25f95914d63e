"""Tasks, episodes and data of a dataset against each other: do they say the same, and is it said what is done?

Which episodes are trained on is taken from the command line, for LeRobot tells a policy its dataset alone.
"""

from collections.abc import Iterable, Iterator
from numbers import Integral
from typing import TYPE_CHECKING, Any

from aegis_policy.data.batches import says_something
from aegis_policy.data.files import check_files, episode_table
from aegis_policy.support.finding import Finding
from aegis_policy.support.lerobot_flags import chosen_episodes, dataset_option

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

EDIT = "lerobot-edit-dataset --operation.type="
"""How the command begins that mends a dataset."""


def check_records(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """Whether tasks, episodes and data files of a dataset whose `check_info` found nothing say the same."""
    episodes = _read_episodes(meta)
    if isinstance(episodes, Finding):
        yield episodes
        return
    chosen = chosen_episodes()
    if beyond := [each for each in chosen or [] if not 0 <= each < meta.total_episodes]:
        yield Finding(
            "error",
            f"--dataset.episodes names {beyond[0]}, and the dataset has {meta.total_episodes} episodes",
            "name some of them, counted from 0",
        )
    if dataset_option("streaming") is not True:  # then the files are elsewhere
        yield from check_files(meta, episodes, partly=chosen is not None)
    yield from _check_order(meta)


def _read_episodes(meta: "LeRobotDatasetMetadata") -> Any:
    """The table of the episodes that are trained on, or the `Finding` that there is none."""
    episodes, chosen = episode_table(meta), chosen_episodes()
    if isinstance(episodes, Finding) or chosen is None:
        return episodes
    return episodes[episodes["episode_index"].isin(chosen)]


def _check_order(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    texts = list(meta.tasks.index)
    numbers = meta.tasks.get("task_index", ())
    if [each if isinstance(each, Integral) else None for each in numbers] != list(range(len(texts))):
        yield Finding(
            "error",
            "meta/tasks.parquet does not hold its tasks in the order of task_index (0, 1, ...), by which LeRobot finds "
            "them, so that frames would get another's instruction",
            "sort it, and number the tasks from 0",
        )


def check_instructions(meta: "LeRobotDatasetMetadata", instruction: str | None) -> Iterator[Finding]:
    """Whether every episode that is trained on says what is done in it, or one instruction stands in for all.

    Args:
        meta: of a dataset whose `check_info` found nothing.
        instruction: see `AegisConfig`.
    """
    texts, episodes = list(meta.tasks.index), _read_episodes(meta)
    said = {text.strip() for text in texts if says_something(text)}
    if instruction is not None:
        if len(said) > 1:
            yield Finding(
                "error",
                f"--policy.instruction would stand in for {len(said)} different instructions of the dataset",
                "leave it out",
            )
        return
    if not said:
        yield Finding(
            "error",
            "The dataset has no instruction (its tasks are empty): this policy follows language, so record every "
            "frame with a `task` text, or say --policy.instruction=TEXT",
        )
        return
    if isinstance(episodes, Finding) or "tasks" not in episodes:
        return
    blank = [
        int(index)
        for index, tasks in zip(episodes["episode_index"], episodes["tasks"], strict=True)
        if not _all_say_something(tasks)
    ]
    if blank:
        few = ", ".join(map(str, blank[:10])) + (", ..." if len(blank) > 10 else "")
        yield Finding(
            "error",
            f"{len(blank)} of {len(episodes)} episodes have no instruction (a blank task; episode {few})",
            f'give them one ({EDIT}modify_tasks --operation.episode_tasks=\'{{"{blank[0]}": "TEXT"}}\'), or leave '
            "them out with --dataset.episodes",
        )


def _all_say_something(tasks: Any) -> bool:
    texts = [tasks] if isinstance(tasks, str) or not isinstance(tasks, Iterable) else list(tasks)
    return bool(texts) and all(says_something(text) for text in texts)
