"""Actions relative to the state in which a chunk is predicted (`use_relative_actions`), by LeRobot's two steps."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_policy.support.finding import Finding

if TYPE_CHECKING:
    from lerobot.processor import AbsoluteActionsProcessorStep, RelativeActionsProcessorStep

    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.data.statistics import Statistics


def relative_steps(
    config: "AegisConfig",
) -> "tuple[list[RelativeActionsProcessorStep], list[AbsoluteActionsProcessorStep]]":
    """What stands before the normaliser and behind the one that undoes it; nothing where actions are absolute."""
    if not config.use_relative_actions:
        return [], []
    from lerobot.processor import AbsoluteActionsProcessorStep

    before = _step(config, config.action_feature_names)
    return [before], [AbsoluteActionsProcessorStep(enabled=True, relative_step=before)]


def _step(config: "AegisConfig", action_names: Sequence[str] | None) -> "RelativeActionsProcessorStep":
    from lerobot.processor import RelativeActionsProcessorStep  # seconds, for few

    return RelativeActionsProcessorStep(
        enabled=True,
        exclude_joints=list(config.relative_exclude_joints),
        action_names=list(action_names) if action_names else None,
    )


def check_relative(
    config: "AegisConfig", statistics: "Statistics | None", names: Mapping[str, Sequence[str]]
) -> Iterator[Finding]:
    """Whether the state can be taken off the actions, and whether the statistics are of what is left.

    Args:
        config: its features already taken from the dataset.
        statistics: feature key -> name -> values.
        names: feature key -> what its dimensions are called, empty where nobody says.
    """
    if not config.use_relative_actions or config.action_feature is None or config.robot_state_feature is None:
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
    taken = _step(config, actions)._build_mask(config.action_dim)  # as LeRobot's own statistics read it
    if config.state_dim < config.action_dim:
        yield Finding(
            "error",
            f"--policy.use_relative_actions takes {OBS_STATE} ({config.state_dim} dimensions) off {ACTION} "
            f"({config.action_dim}), dimension by dimension, and has too few",
            "train on absolute actions, or record a state that begins with what the actions command",
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
    of_actions, of_states = (
        np.asarray((statistics or {}).get(key, {}).get("count", np.nan)) for key in (ACTION, OBS_STATE)
    )
    if config.chunk_size > 1 and np.array_equal(of_actions, of_states):
        yield Finding(
            "error",
            f"The dataset's statistics (meta/stats.json) are of absolute actions: as many of {ACTION} as of "
            f"{OBS_STATE}, and not as many as the chunks that begin there have",
            "compute them with lerobot-edit-dataset --operation.type=recompute_stats --operation.relative_action=true "
            f"--operation.chunk_size={config.chunk_size} "
            f'--operation.relative_exclude_joints="{excluded}"',
        )
