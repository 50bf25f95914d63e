"""What a dataset must be for a policy to learn from it: the checks of a training's start, and of `aegis-doctor`.

They read metadata, which LeRobot has loaded, and of frames state and actions (`frames`). Statistics have a module of
their own, `statistics`, and so have tasks and episodes, `records`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lerobot.configs import NormalizationMode, PolicyFeature
from lerobot.utils.constants import ACTION, DEFAULT_FEATURES, OBS_STATE

from aegis_policy.data.files import episode_table
from aegis_policy.data.frames import check_frames
from aegis_policy.data.records import EDIT, check_instructions, check_records
from aegis_policy.data.relative import check_relative
from aegis_policy.data.statistics import check_kept, check_statistics
from aegis_policy.data.step_names import VECTORS
from aegis_policy.support.errors import shortened
from aegis_policy.support.finding import Finding
from aegis_policy.support.lerobot_flags import dataset_option, resuming

if TYPE_CHECKING:
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata

    from aegis_policy.configuration_aegis import AegisConfig

_PICTURES = ("image", "video")
_NUMBERS = (
    *("float16", "float32", "float64", "bool"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def check_dataset(
    config: "AegisConfig", meta: "LeRobotDatasetMetadata", checkpoint: Path | None = None
) -> Iterator[Finding]:
    """All that a dataset's metadata say against training this policy on it.

    Args:
        config: of the policy, its features already taken from the dataset or from a checkpoint.
        meta: the dataset's.
        checkpoint: that the training goes on from.
    """
    yield from check_opening(meta)
    if any(check_info(meta)):
        return
    keys = [key for key in meta.features if key not in DEFAULT_FEATURES]
    yield from check_features(config, keys)
    yield from check_vectors(meta, checkpoint)
    yield from _check_contents(config, meta)
    if checkpoint is not None and resuming():
        yield from check_kept(config, checkpoint, meta.stats, _names(meta))
    yield from check_records(meta)
    yield from check_instructions(meta, config.instruction)


def check_vla_dataset(config: "PreTrainedConfig", meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """What a dataset's metadata say against training one of LeRobot's own policies on it, protected.

    Args:
        config: of the policy, its features already taken from the dataset or from a checkpoint.
        meta: the dataset's.
    """
    yield from check_opening(meta)
    if any(check_info(meta)):
        return
    yield from _check_contents(config, meta)
    yield from check_records(meta)
    yield from check_instructions(meta, None)


def _check_contents(config: "PreTrainedConfig", meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """What is asked of state and actions, whatever the policy: their values, and what they are normalised by."""
    names, episodes = _names(meta), episode_table(meta)
    lengths = [] if isinstance(episodes, Finding) else [*map(int, episodes["length"])]
    yield from check_frames(meta)
    yield from check_statistics(config, meta.stats, names)
    yield from check_relative(config, meta.stats, names, lengths)


def _names(meta: "LeRobotDatasetMetadata") -> dict[str, list[str]]:
    return {key: _labels(feature.get("names")) for key, feature in meta.features.items()}


def check_opening(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """Whether LeRobot can open a dataset for a training, as far as it does not say so itself."""
    yield from [*check_info(meta)] or _check_cameras(meta)


def _check_cameras(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    bare = [key for key in meta.camera_keys if not isinstance((meta.stats or {}).get(key), Mapping)]
    if bare and dataset_option("use_imagenet_stats") is not False:
        yield Finding(
            "error",
            f"meta/stats.json has no statistics of {', '.join(bare)}, over which lerobot-train writes ImageNet's",
            f"compute them with {EDIT}recompute_stats, or train with --dataset.use_imagenet_stats=false",
        )


def check_info(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """Whether `meta/info.json` says what LeRobot relies on: features with dtype and shape, a frame rate, counts."""
    yield from _check_counts(meta.info)
    for key, feature in meta.info.features.items():
        problem = _malformed(feature)
        if problem:
            yield Finding(
                "error",
                f"Feature {key} of meta/info.json {problem}",
                "restore the file, or record the dataset again",
            )


def _check_counts(info: Any) -> Iterator[Finding]:
    if isinstance(info.fps, bool) or not isinstance(info.fps, int | float) or not 0 < info.fps < math.inf:
        yield Finding(
            "error",
            f"meta/info.json says fps={info.fps!r}, which is no frame rate",
            "write the frames a second at which the dataset was recorded",
        )
    for name in ("total_episodes", "total_frames", "total_tasks"):
        count = getattr(info, name)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            yield Finding(
                "error",
                f"meta/info.json says {name}={shortened(count)}, which is no count",
                "restore the file",
            )
        elif count == 0:
            what = {"total_tasks": "has no tasks, and LeRobot looks one up for every frame"}.get(
                name, "is empty"
            )
            mend = "record demonstrations" + (" with a `task` text" if name == "total_tasks" else "")
            yield Finding("error", f"The dataset {what} ({name} in meta/info.json is 0)", mend)


def _malformed(feature: Any) -> str:
    """What is wrong with a feature's description; empty if nothing is."""
    if not isinstance(feature, Mapping) or not isinstance(feature.get("dtype"), str):
        return "has no dtype"
    shape = feature.get("shape")
    if not isinstance(shape, tuple) or not all(_is_length(each) for each in shape):
        return f"has the shape {shortened(shape)}, and not the lengths of its axes"
    if not all(isinstance(feature.get(name) or {}, Mapping) for name in ("info", "video_info")):
        return "has an `info` that is no mapping"
    if feature["dtype"] in _PICTURES:
        names = feature.get("names")
        if len(shape) != 3:
            return f"is a camera with the shape {shape}, and not (height, width, channels)"
        if not isinstance(names, list | tuple) or len(names) != 3:
            return 'is a camera and does not name its axes (`"names": ["height", "width", "channels"]`)'
    return ""


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_features(config: "AegisConfig", keys: Iterable[str] | None = None) -> Iterator[Finding]:
    """Whether a policy has cameras, state and actions to work with, each in the form it reads.

    Args:
        config: whose features they are.
        keys: of the dataset; the config's features unless given.
    """
    said = ", ".join(keys or [*(config.input_features or {}), *(config.output_features or {})]) or "none"
    vectors = {"observation.state": config.robot_state_feature, "action": config.action_feature}
    wanted: dict[str, Any] = {"camera (observation.images.*)": config.image_features, **vectors}
    for name, feature in wanted.items():
        if not feature:
            yield Finding(
                "error",
                f"The dataset gives this policy no {name}; its keys are {said}",
                "record the missing one or name it so (a checkpoint's keys can be mapped with --rename_map)",
            )
    for key, feature in config.image_features.items():
        if len(feature.shape) != 3 or feature.shape[0] != 3:
            leave_out = (
                f"leave that camera out of the dataset ({EDIT}remove_feature "
                f"--operation.feature_names='[\"{key}\"]'), or out of --policy.input_features"
            )
            rename = (
                'name its axes `["height", "width", "channels"]` in meta/info.json, as LeRobot reads them'
            )
            yield Finding(
                "error",
                f"Camera {key} has shape {tuple(feature.shape)}, and the VLM wants colour images (3, height, width)",
                rename if feature.shape[-1:] == (3,) else leave_out,
            )
    for key, vector in vectors.items():
        if vector is not None and (len(vector.shape) != 1 or vector.shape[0] < 1):
            yield Finding(
                "error",
                f"{key} has shape {tuple(vector.shape)}, and the policy wants one vector",
                "store it as one row of numbers",
            )
        elif vector is not None:
            constant = (config.constant_dimensions or {}).get(key, [])
            if beyond := [index for index in constant if not 0 <= index < vector.shape[0]]:
                yield Finding(
                    "error",
                    f"The policy's constant_dimensions name {beyond[0]} of {key}, which has {vector.shape[0]}",
                    "leave --policy.constant_dimensions out, or restore config.json from where it was saved",
                )
    yield from _check_normalization(config)


def _check_normalization(config: "AegisConfig") -> Iterator[Finding]:
    mode = NormalizationMode(config.normalization_mapping.get("VISUAL", NormalizationMode.IDENTITY))
    if mode is not NormalizationMode.IDENTITY:
        yield Finding(
            "error",
            f"--policy.normalization_mapping normalises pictures (VISUAL: {mode.value}), which the VLM's own processor "
            "does already",
            "leave VISUAL at IDENTITY",
        )


def read_features(
    config: "AegisConfig",
) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """The inputs and outputs that the policy reads, of all that a dataset or a checkpoint names.

    What else there is (a flag, a text, a depth in numbers) would be normalised by LeRobot for nobody, and fails there
    if it is a bool or a text.
    """
    inputs, outputs = config.input_features or {}, config.output_features or {}
    read = {*config.image_features, OBS_STATE, ACTION}
    return (
        {key: each for key, each in inputs.items() if key in read},
        {key: each for key, each in outputs.items() if key in read},
    )


def check_vectors(meta: "LeRobotDatasetMetadata", checkpoint: Path | None) -> Iterator[Finding]:
    """Whether state and actions are numbers, and such as a checkpoint's own processors read.

    Args:
        meta: of the dataset; a renamed state is missed with its statistics.
        checkpoint: a `pretrained_model` folder that the policy comes from. One from before `VectorsStep` lacks it.
    """
    stored = {key: meta.features[key] for key in (OBS_STATE, ACTION) if key in meta.features}
    for key, feature in stored.items():
        if feature["dtype"] not in _NUMBERS:
            yield Finding(
                "error",
                f"{key} of the dataset is of dtype {feature['dtype']}, and the policy wants numbers",
                f"store it as one of {', '.join(_NUMBERS)}",
            )
    plain = all(each["dtype"] in ("float32", "float64") and each["shape"] != (1,) for each in stored.values())
    if checkpoint is not None and not plain:
        yield from _check_processors(checkpoint / "policy_preprocessor.json")


def _check_processors(file: Path) -> Iterator[Finding]:
    if file.is_file() and VECTORS not in file.read_text():
        yield Finding(
            "error",
            f"{file} was saved by an older version of this package, which normalised whole numbers and vectors of "
            "length 1 wrongly, and the dataset holds such",
            "train a new policy on it",
        )


def action_names(meta: "LeRobotDatasetMetadata") -> list[str] | None:
    """What a dataset calls the dimensions of its actions; None if it does not say."""
    return _labels(meta.features.get(ACTION, {}).get("names")) or None


def _labels(names: Any) -> list[str]:
    """What a vector's dimensions are called; older datasets have them in a mapping of groups."""
    if isinstance(names, Mapping):
        return [str(each) for part in names.values() if isinstance(part, list) for each in part]
    return [str(each) for each in names] if isinstance(names, list | tuple) else []
