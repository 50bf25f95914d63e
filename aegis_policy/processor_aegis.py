"""Batches in, actions out: LeRobot's default steps. Images and text wait for the VLM's processor."""

from typing import Any

from lerobot.lerobot_types import PolicyAction
from lerobot.processor import PolicyProcessorPipeline, make_default_pre_post_processors
from torch import Tensor

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.checks import check_statistics


def make_aegis_pre_post_processors(
    config: AegisConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]:
    """Normalise state and actions with the dataset's statistics, and undo it for the actions that come out.

    Raises:
        AegisError: the statistics do not cover a feature that is normalised.
    """
    if dataset_stats is not None:
        check_statistics(config, dataset_stats)
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
