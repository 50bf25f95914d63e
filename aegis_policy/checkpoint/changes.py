"""What of a configuration may differ from that of the checkpoint beside it: when a training is resumed, and else."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import draccus
from lerobot.configs import PreTrainedConfig

from aegis_policy.checkpoint.checks import (
    CONFIG_FILE,
    REFERENCE_FILE,
    TRAINING_CONFIG_FILE,
    check_resumable,
    check_sizes,
)
from aegis_policy.protections import OPTIONS, PROTECTIONS, Protection
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json
from aegis_policy.support.lerobot_flags import resuming

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.lerobot_vlas.configuration_vlas import ProtectedVLAConfig


class Rule(Enum):
    """When a field may differ from the checkpoint's."""

    FREE = "always; it counts from then on"
    BEGUN = "in a new training; one that is resumed goes on with what it began with"
    IDLE = (
        "in a new training; for one that is resumed LeRobot restores the optimizer, whatever the field says"
    )
    BUILT = "never: the weights fit no other"
    DATA = "with the data, whose sizes `checks.check_sizes` compares"
    WRITTEN = "it is written by the policy"


RULES: dict[str, Rule] = {
    **dict.fromkeys(OPTIONS, Rule.BEGUN),
    **dict.fromkeys(
        ("protection", "train_vision_tower", "train_projector", "normalization_mapping"), Rule.BEGUN
    ),
    **dict.fromkeys(
        ("vlm", "backbone_depth", "chunk_size", "n_obs_steps", "lora_rank", "lora_alpha"), Rule.BUILT
    ),
    **dict.fromkeys(("expert_width", "expert_depth", "expert_heads"), Rule.BUILT),
    **dict.fromkeys(("use_relative_actions", "relative_exclude_joints"), Rule.BUILT),
    **dict.fromkeys(("optimizer_lr", "optimizer_lr_backbone", "optimizer_betas", "optimizer_eps"), Rule.IDLE),
    **dict.fromkeys(("optimizer_weight_decay", "optimizer_grad_clip_norm", "optimizer_bits"), Rule.IDLE),
    **dict.fromkeys(("expert_optimizer", "optimizer_eps_backbone"), Rule.IDLE),
    **dict.fromkeys(("scheduler_warmup_steps", "expert_only_steps"), Rule.IDLE),
    **dict.fromkeys(("input_features", "output_features"), Rule.DATA),
    **dict.fromkeys(
        ("vlm_fingerprint", "anchor_info", "constant_dimensions", "action_feature_names", "defaults_taken"),
        Rule.WRITTEN,
    ),
    **dict.fromkeys(("replay_data", "replay_samples", "replay_batch_size"), Rule.FREE),
    **dict.fromkeys(("vqa_probe_freq", "vqa_probe_data", "vqa_probe_samples", "instruction"), Rule.FREE),
    **dict.fromkeys(("n_action_steps", "num_inference_steps", "rtc_config"), Rule.FREE),
    **dict.fromkeys(("compile_model", "compile_mode"), Rule.FREE),
    **dict.fromkeys(("flow_samples", "time_alpha", "time_beta", "time_max"), Rule.FREE),
    **dict.fromkeys(
        ("dtype", "frozen_dtype", "gradient_checkpointing", "device", "use_amp", "use_peft"), Rule.FREE
    ),
    **dict.fromkeys(("push_to_hub", "repo_id", "private", "tags", "license"), Rule.FREE),
    **dict.fromkeys(("pretrained_path", "pretrained_revision"), Rule.FREE),
}
"""Every field of `AegisConfig`."""
VLA_RULES = {
    **dict.fromkeys(OPTIONS | {"protection"}, Rule.BEGUN),
    **dict.fromkeys(("lora_rank", "lora_alpha"), Rule.BUILT),
    **dict.fromkeys(("use_relative_actions", "relative_exclude_joints"), Rule.BUILT),
    **dict.fromkeys(("dtype", "freeze_vision_encoder", "normalization_mapping"), Rule.BEGUN),
    **dict.fromkeys(("optimizer_lr", "optimizer_betas", "optimizer_eps"), Rule.IDLE),
    **dict.fromkeys(("optimizer_weight_decay", "optimizer_grad_clip_norm"), Rule.IDLE),
    **dict.fromkeys(("scheduler_warmup_steps", "scheduler_decay_steps", "scheduler_decay_lr"), Rule.IDLE),
}
"""What the fields of a protection may do in the configuration of LeRobot's own policies; the rest is LeRobot's."""

OPTIMIZER_RESTORED = ("lr", "betas", "eps", "weight_decay", "bits")
"""Fields of `AegisAdamWConfig` (`--optimizer.*`) that LeRobot restores with the optimizer's state."""


def check_use(checkpoint: Path, config: PreTrainedConfig, data: Any | None) -> Iterator[Finding]:
    """Whether a checkpoint can be used with a configuration and, in a training, with the data.

    Args:
        checkpoint: a `pretrained_model` folder that passed `check_checkpoint`.
        config: what is to be used.
        data: LeRobot's metadata of the dataset; None outside of a training.
    """
    if config.type != "aegis":
        yield Finding(
            "error",
            f"{checkpoint} is no policy of type {config.type}",
            "give a configuration of its own type",
        )
        return
    own = read_json(checkpoint / CONFIG_FILE)
    resumed = data is not None and resuming()
    yield from check_changes(checkpoint, cast("AegisConfig", config), resumed)
    if data is None:
        yield from check_environment(own, config)
    else:
        yield from check_sizes(own, data.features)
        if resumed:
            yield from check_resumable(checkpoint)
            yield from check_dataset_kept(checkpoint, data.repo_id)


def check_environment(own: Mapping[str, Any], config: PreTrainedConfig) -> Iterator[Finding]:
    """Whether a checkpoint fits an evaluation's environment, whose actions LeRobot writes into the configuration.

    Args:
        own: the checkpoint's `config.json`.
        config: what is to be used.
    """
    theirs = {**(config.input_features or {}), **(config.output_features or {})}
    shapes = {key: {"shape": each.shape} for key, each in theirs.items()}
    yield from check_sizes(own, shapes, "environment")


def check_changes(
    checkpoint: Path,
    config: "AegisConfig | ProtectedVLAConfig",
    resumed: bool,
    rules: Mapping[str, Rule] = RULES,
) -> Iterator[Finding]:
    """Whether `config` may be used beside a checkpoint; each field that may not is one error, by its flag.

    Args:
        checkpoint: a `pretrained_model` folder that passed `check_checkpoint`.
        config: what is to be used.
        resumed: a training goes on, with the state of its optimizer.
        rules: of the fields; those that they do not name are free.
    """
    changed = _changed(read_json(checkpoint / CONFIG_FILE), config)
    if "protection" in changed and (why := _unfit(checkpoint, changed["protection"][0], config.protection)):
        yield Finding(
            "error",
            f"--policy.protection={config.protection} does not fit the weights of {checkpoint}, which were trained "
            f"with {changed['protection'][0]}: {why}",
            _by_way_of_an_export(checkpoint, config),
        )
        return
    anew = f"leave it out, or begin a new training from these weights with --policy.path={checkpoint}"
    for name, (before, now) in changed.items():
        flag, before = f"--policy.{name}={_said(now)}", _said(before)
        rule = rules.get(name, Rule.FREE)
        if rule is Rule.BUILT:
            yield Finding(
                "error",
                f"{flag} does not fit the weights of {checkpoint}, which are for {before}",
                "leave it out, or train a new policy",
            )
        elif rule is Rule.BEGUN and resumed:
            yield Finding(
                "error", f"{flag} cannot change when a training is resumed; it began with {before}", anew
            )
        elif rule is Rule.IDLE and resumed:
            yield Finding(
                "error",
                f"{flag} changes nothing when a training is resumed; LeRobot goes on with {before}",
                anew,
            )


def check_dataset_kept(checkpoint: Path, repo_id: str) -> Iterator[Finding]:
    """Whether a training is resumed on the data that it began with."""
    before = _training_config(checkpoint).get("dataset")
    before = before.get("repo_id") if isinstance(before, dict) else None
    if before not in (None, repo_id):
        yield Finding(
            "warning",
            f"training is resumed on {repo_id} and began on {before}, whose statistics go on to normalise it",
            f"begin a new training from these weights with --policy.path={checkpoint} for those of {repo_id}",
        )


def optimizer_begun(checkpoint: Path) -> dict[str, Any]:
    """What of the optimizer a resumed training goes on with, by the names of `OPTIMIZER_RESTORED`, as far as known."""
    begun = _training_config(checkpoint).get("optimizer")
    return (
        {name: begun[name] for name in OPTIMIZER_RESTORED if name in begun} if isinstance(begun, dict) else {}
    )


def _changed(
    before: Mapping[str, Any], config: "AegisConfig | ProtectedVLAConfig"
) -> dict[str, tuple[Any, Any]]:
    """Name -> value in a checkpoint and now, of what differs.

    Where protection or anchor differ, what options took by them follows and is left out, as are options that an old
    checkpoint has open.
    """
    now = json.loads(json.dumps(draccus.encode(config, PreTrainedConfig)))
    defaults = {
        field.name: list(field.default)
        if isinstance(field.default, tuple)
        else field.default  # as JSON has it
        for field in fields(config)
        if field.default is not MISSING
    }
    found = {}
    for name, value in now.items():
        known = before.get(name, defaults.get(name, value))
        if known != value:
            found[name] = (known, value)
    following = {*(before.get("defaults_taken") or {}), *(config.defaults_taken or {})} - {
        "protection",
        "anchor",
    }
    if "protection" in found:
        following |= OPTIONS
    moved = bool(found.keys() & {"protection", "anchor"})
    return {
        name: pair for name, pair in found.items() if not (name in following and (moved or pair[0] is None))
    }


def _unfit(checkpoint: Path, before: Any, now: str) -> str | None:
    """Why no protection `now` can go on from the weights of a checkpoint that another one trained; None if it can."""
    known = PROTECTIONS.get(before, Protection) if isinstance(before, str) else Protection
    wanted = PROTECTIONS[now]
    if known.adapt not in (Protection.adapt, wanted.adapt):
        return f"{before} has adapters, for which {now} has no place"
    if wanted.needs_reference and not known.needs_reference and not (checkpoint / REFERENCE_FILE).is_file():
        return f"{now} compares with the pretrained weights, and only checkpoints of its kind keep those"
    return None


def _by_way_of_an_export(checkpoint: Path, config: "AegisConfig | ProtectedVLAConfig") -> str:
    export = f"aegis-export --policy.path={checkpoint} --output_dir=DIR"
    if config.type == "aegis":
        return f"make a VLM of them with {export} and train a new policy with --policy.vlm=DIR"
    return f"make a plain policy of them with {export} --plain and begin from it with --policy.pretrained_path=DIR"


def _training_config(checkpoint: Path) -> dict[str, Any]:
    """What a training was told, or nothing if that cannot be read."""
    try:
        found = read_json(checkpoint / TRAINING_CONFIG_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(value: Any) -> str:
    """A value as a flag says it."""
    return value if isinstance(value, str) else json.dumps(value)
