"""Actions relative to the state in which a chunk is predicted (`use_relative_actions`), by LeRobot's two steps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lerobot.configs import NormalizationMode
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_policy.data.statistics import normalization_of
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.processor import AbsoluteActionsProcessorStep, RelativeActionsProcessorStep

    from aegis_policy.data.statistics import Statistics


def relative_steps(
    config: "PreTrainedConfig",
) -> "tuple[list[RelativeActionsProcessorStep], list[AbsoluteActionsProcessorStep]]":
    """What stands before the normaliser and behind the one that undoes it; nothing where actions are absolute."""
    if not _is_relative(config):
        return [], []
    from lerobot.processor import AbsoluteActionsProcessorStep

    before = _step(config, config.action_feature_names)
    return [before], [AbsoluteActionsProcessorStep(enabled=True, relative_step=before)]


def _is_relative(config: Any) -> bool:
    return bool(getattr(config, "use_relative_actions", False))  # not every policy of LeRobot's has it


def _step(config: Any, action_names: Sequence[str] | None) -> "RelativeActionsProcessorStep":
    from lerobot.processor import RelativeActionsProcessorStep  # seconds, for few

    return RelativeActionsProcessorStep(
        enabled=True,
        exclude_joints=list(config.relative_exclude_joints),
        action_names=list(action_names) if action_names else None,
    )


def refuse_later_steps(config: Any) -> None:
    """See that no action of a chunk is carried out after another observation: LeRobot adds the state seen last.

    Args:
        config: of any policy, its flags set.

    Raises:
        AegisError: one would be.
    """
    if _is_relative(config) and config.n_action_steps > 1:
        raise AegisError(
            f"--policy.use_relative_actions=true goes with --policy.n_action_steps=1, not {config.n_action_steps}: a "
            "later action of a chunk would be added to another state than it was predicted in."
        )


def check_base(held: Mapping[str, Any], config: Any) -> Iterator[Finding]:
    """Whether a training makes actions relative where its base's processors, with which it goes on, do.

    Args:
        held: the base's `config.json`.
        config: of the training.
    """
    if held.get("use_relative_actions") and not _is_relative(config):
        yield Finding(
            "error",
            "--policy.pretrained_path names a policy of relative actions, and LeRobot goes on making them so",
            "give --policy.use_relative_actions=true",
        )


def check_relative(
    config: "PreTrainedConfig",
    statistics: "Statistics | None",
    names: Mapping[str, Sequence[str]],
    lengths: Sequence[int],
) -> Iterator[Finding]:
    """Whether the state can be taken off the actions, and whether the statistics are of what is left.

    Args:
        config: of any policy, its features already taken from the dataset.
        statistics: feature key -> name -> values.
        names: feature key -> what its dimensions are called, empty where nobody says.
        lengths: of the dataset's episodes, in frames; empty where they cannot be read.
    """
    if not _is_relative(config) or config.action_feature is None or config.robot_state_feature is None:
        return
    excluded = list(config.relative_exclude_joints)
    actions, states = (names.get(key, ()) for key in (ACTION, OBS_STATE))
    if excluded and not actions:
        yield Finding(
            "error",
            f"The dataset does not say what the dimensions of {ACTION} are called, so that "
            f"--policy.relative_exclude_joints={excluded} leaves none of them absolute",
            "write their names into meta/info.json, or give --policy.relative_exclude_joints=[]",
        )
        return
    action_dim, state_dim = config.action_feature.shape[0], config.robot_state_feature.shape[0]
    if state_dim < action_dim:
        yield Finding(
            "error",
            f"--policy.use_relative_actions takes {OBS_STATE} ({state_dim} dimensions) off {ACTION} "
            f"({action_dim}), dimension by dimension, and has too few",
            "train on absolute actions, or record a state that begins with what the actions command",
        )
        return
    taken = _step(config, actions)._build_mask(action_dim)  # as LeRobot's own statistics read it
    if not any(taken):
        yield Finding(
            "error",
            f"--policy.relative_exclude_joints={excluded} leaves no dimension of {ACTION} relative",
            "name fewer, or leave out --policy.use_relative_actions",
        )
        return
    for index, relative in enumerate(taken):
        if relative and actions and len(states) > index and actions[index] != states[index]:
            yield Finding(
                "error",
                f"--policy.use_relative_actions takes dimension {index} of {OBS_STATE} ({states[index]}) off that of "
                f"{ACTION} ({actions[index]}), which is another thing",
                "train on these actions as they are, or name in --policy.relative_exclude_joints what stays absolute",
            )
            return
    if lengths and normalization_of(config, "ACTION") is not NormalizationMode.IDENTITY:
        yield from _check_counts(config.chunk_size, excluded, statistics or {}, lengths)


def _check_counts(
    chunk_size: int, excluded: list[str], statistics: "Statistics", lengths: Sequence[int]
) -> Iterator[Finding]:
    """What statistics are of, by how many actions went into them: one of each frame, or all of each whole chunk."""
    counts = {key: np.ravel(statistics.get(key, {}).get("count", ())) for key in (ACTION, OBS_STATE)}
    chunks = sum(max(length - chunk_size + 1, 0) for length in lengths)
    if not chunks:
        yield Finding(
            "error",
            f"No episode has the {chunk_size} frames of --policy.chunk_size, and statistics of relative actions are of "
            "whole chunks",
            "lower --policy.chunk_size",
        )
        return
    if counts[ACTION].size == 0 or np.array_equal(counts[ACTION], [chunks * chunk_size]):
        return
    mend = (
        "compute them with lerobot-edit-dataset --operation.type=recompute_stats --operation.relative_action=true "
        f'--operation.chunk_size={chunk_size} --operation.relative_exclude_joints="{excluded}"'
    )
    if np.array_equal(counts[ACTION], counts[OBS_STATE]):
        yield Finding(
            "error",
            f"The dataset's statistics (meta/stats.json) are of absolute actions: as many of {ACTION} as of "
            f"{OBS_STATE}, and not as many as the chunks that begin there have",
            mend,
        )
    else:
        yield Finding(
            "warning",
            f"The dataset's statistics (meta/stats.json) are of {counts[ACTION][0]} actions, and its chunks of "
            f"--policy.chunk_size={chunk_size} have {chunks * chunk_size}: these were chunks of another length",
            mend,
        )
