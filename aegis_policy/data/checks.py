"""What a dataset or environment must bring, checked where LeRobot shows it; each gap is one clear sentence.

Batches are checked rather than the dataset's own key list, because LeRobot applies `--rename_map` on the way.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lerobot.configs import NormalizationMode
from lerobot.utils.constants import ACTION, OBS_STATE

from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig

_STATISTICS = {
    NormalizationMode.MEAN_STD: ("mean", "std"),
    NormalizationMode.MIN_MAX: ("min", "max"),
    NormalizationMode.QUANTILES: ("q01", "q99"),
    NormalizationMode.QUANTILE10: ("q10", "q90"),
}


def check_batch(config: "AegisConfig", batch: Mapping[str, Any], with_actions: bool) -> None:
    """See that a batch has every camera, the state, the instruction and (for training) the actions.

    Raises:
        AegisError: a key is missing (with a table of both sides' keys) or a vector has another length.
    """
    wanted = [*config.image_features, OBS_STATE, *([ACTION] if with_actions else [])]
    missing = [key for key in wanted if key not in batch]
    if missing:
        given = sorted(key for key in batch if key.startswith("observation.") or key == ACTION)
        given = [key for key in given if not key.endswith("_is_pad")]
        raise AegisError(
            f"The policy expects {', '.join(missing)}, which the data lacks: map the data's keys with "
            f"""--rename_map='{{"their.key": "policy.key"}}' (cameras), or in the dataset itself (state, """
            f"actions, whose statistics are not renamed).\n{key_table(given, wanted)}"
        )
    if not all(text.strip() for text in instructions(config, batch)):
        raise AegisError(
            "The data has no instruction (key `task`): this policy follows language, so record the dataset with a "
            "task text for every frame, give the environment a task_description, or say --policy.instruction=TEXT."
        )
    lengths = {OBS_STATE: config.state_dim, **({ACTION: config.action_dim} if with_actions else {})}
    for key, length in lengths.items():
        if batch[key].shape[-1] != length:
            raise AegisError(
                f"{key} has {batch[key].shape[-1]} values in the data and {length} in the policy: train a "
                "new policy on this data, or use the data this checkpoint was trained for."
            )


def instructions(config: "AegisConfig", batch: Mapping[str, Any]) -> list[str]:
    """What each sample of a batch is told: `config.instruction`, or else its own text, or else nothing.

    LeRobot hands over an environment's internal name where it has no description (`transfer_cube` of ALOHA).
    """
    count = len(batch[OBS_STATE])
    if config.instruction is not None:
        return [config.instruction] * count
    return [str(task) for task in batch.get("task") or [""] * count]


def key_table(given: Iterable[str], wanted: Iterable[str]) -> str:
    """Two columns, the data's keys beside the policy's; equal keys share a line."""
    given, wanted = list(given), list(wanted)
    rows = [(key, key) for key in wanted if key in given]
    rows += [("-", key) for key in wanted if key not in given]
    rows += [(key, "-") for key in given if key not in wanted]
    width = max(len("data"), *(len(left) for left, _ in rows))
    return "\n".join(f"  {left:<{width}}  {right}" for left, right in [("data", "policy"), *rows])


def check_language(config: "AegisConfig", tasks: Iterable[str]) -> None:
    """See that a dataset's list of tasks says something, or that `config.instruction` stands in for one task at most.

    Raises:
        AegisError: there is no task, or all are empty; or there are several that the instruction would replace.
    """
    said = {str(task).strip() for task in tasks} - {""}
    if config.instruction is not None and len(said) > 1:
        raise AegisError(
            f"--policy.instruction would stand in for {len(said)} different instructions of the dataset: leave it out."
        )
    if config.instruction is None and not said:
        raise AegisError(
            "The dataset has no instruction (its tasks are empty): this policy follows language, so record "
            "every frame with a `task` text, or say --policy.instruction=TEXT."
        )


def check_statistics(config: "AegisConfig", statistics: Mapping[str, Mapping[str, Any]]) -> None:
    """See that the dataset's statistics cover every feature that is normalised.

    LeRobot renames a dataset's keys but not its statistics, and leaves a feature without statistics as it is: a
    renamed state would be trained on unnormalised.

    Args:
        config: which features there are and how each is normalised.
        statistics: feature key -> name -> values.

    Raises:
        AegisError: some are absent, not finite, or of another length.
    """
    features = {**(config.input_features or {}), **(config.output_features or {})}
    for key, feature in features.items():
        mode = config.normalization_mapping.get(feature.type.value, NormalizationMode.IDENTITY)
        for name in _STATISTICS.get(mode, ()):
            value = torch.as_tensor(statistics.get(key, {}).get(name, []))
            if value.shape != tuple(feature.shape) or not torch.isfinite(value).all():
                problem = "no" if value.numel() == 0 else "no usable"
                raise AegisError(
                    f"The dataset's statistics (meta/stats.json) have {problem} `{name}` of {key}, which "
                    f"{mode.value} normalisation needs with shape {tuple(feature.shape)}: name the key so in "
                    "the dataset (--rename_map does not rename statistics), compute them again with "
                    "lerobot-edit-dataset --operation.type=recompute_stats, or set "
                    "--policy.normalization_mapping."
                )
