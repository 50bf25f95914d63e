"""Batches in, actions out: LeRobot's default steps, and one before them that makes floating vectors.

Images and text wait for the VLM's processor.
"""

from typing import Any

from lerobot.lerobot_types import PolicyAction
from lerobot.processor import (
    PolicyProcessorPipeline,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.relative import relative_steps
from aegis_policy.data.statistics import check_statistics
from aegis_policy.data.vectors import VectorsStep
from aegis_policy.support.finding import enforce


def make_aegis_pre_post_processors(
    config: AegisConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Normalise state and actions with the dataset's statistics, and undo it for the actions that come out.

    Actions that are relative to the state are so before they are normalised.

    Raises:
        AegisError: the statistics do not cover a feature that is normalised.
    """
    if dataset_stats is not None:
        enforce(each for each in check_statistics(config, dataset_stats) if each.status == "error")
    before = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    after = make_default_policy_processor_steps(config, dataset_stats)
    lengths = {OBS_STATE: config.state_dim, ACTION: config.action_dim}
    relative, absolute = relative_steps(config)
    return make_policy_processor_pipelines(
        [
            before.rename_observations,
            VectorsStep(lengths),
            before.add_batch_dim,
            *relative,
            before.to_device,
            before.normalize,
        ],
        [after.unnormalize, *absolute, after.to_cpu],
    )
