"""Which options may differ from a checkpoint's: every one has a rule, and what breaks it is named by its flag."""

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from findings import told
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.rtc import RTCConfig

from aegis_policy.checkpoint.changes import RULES, Rule, check_changes, check_use
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.support.json_files import read_json, write_json

MakeConfig = Callable[..., AegisConfig]
Saved = Callable[..., Path]

CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "anchor_path": ("other.safetensors", {"protection": "aegis"}),
    "penalty": (0.5, {"protection": "l2_sp"}),
    "replay_data": ("elsewhere", {"protection": "replay"}),
    "replay_samples": (5, {"protection": "replay"}),
    "replay_batch_size": (5, {"protection": "replay"}),
    "lora_rank": (4, {"protection": "lora"}),
    "lora_alpha": (4, {"protection": "lora"}),
    "lora_null_space": (True, {"protection": "lora"}),
    "action_tokenizer": ("fast", {"protection": "knowledge_insulation"}),
    "action_bins": (64, {"protection": "knowledge_insulation"}),
    "anchor_share": (0.5, {"protection": "aegis", "anchor": "subspace"}),
    "anchor": ("gaussian+subspace", {"protection": "aegis"}),
    "vlm": ("elsewhere", {}),
    "protection": ("freeze", {}),
    "vqa_probe_freq": (7, {}),
    "vqa_probe_data": ("elsewhere", {"vqa_probe_freq": 1}),
    "vqa_probe_samples": (3, {"vqa_probe_freq": 1}),
    "instruction": ("do it", {}),
    "train_vision_tower": (True, {}),
    "train_projector": (True, {}),
    "backbone_depth": (1, {}),
    "chunk_size": (8, {}),
    "n_action_steps": (1, {}),
    "num_inference_steps": (3, {}),
    "rtc_config": (RTCConfig(), {}),
    "use_relative_actions": (True, {"n_action_steps": 1}),
    "relative_exclude_joints": (("wrist",), {"n_action_steps": 1, "use_relative_actions": True}),
    "compile_model": (True, {}),
    "compile_mode": ("reduce-overhead", {"compile_model": True}),
    "expert_width": (32, {}),
    "expert_depth": (3, {}),
    "expert_heads": (4, {}),
    "expert_optimizer": ("muon", {}),
    "flow_samples": (2, {}),
    "time_alpha": (2.0, {}),
    "time_beta": (2.0, {}),
    "time_max": (0.5, {}),
    "dtype": ("bfloat16", {}),
    "frozen_dtype": ("bfloat16", {"dtype": "bfloat16"}),
    "gradient_checkpointing": (True, {}),
    "normalization_mapping": ({"VISUAL": "IDENTITY", "STATE": "IDENTITY", "ACTION": "MEAN_STD"}, {}),
    "optimizer_lr": (1e-7, {}),
    "optimizer_lr_backbone": (1e-7, {}),
    "optimizer_betas": ((0.8, 0.9), {}),
    "optimizer_eps": (1e-5, {}),
    "optimizer_eps_backbone": (1e-5, {}),
    "optimizer_weight_decay": (0.5, {}),
    "optimizer_grad_clip_norm": (0.5, {}),
    "optimizer_bits": (8, {}),
    "scheduler_warmup_steps": (3, {}),
    "expert_only_steps": (3, {}),
    "push_to_hub": (True, {}),
}
"""Field -> another value, and under which options a checkpoint has the first one."""
UNLIKE = {
    Rule.BUILT: "does not fit the weights",
    Rule.BEGUN: "cannot change when",
    Rule.IDLE: "changes nothing when",
}


def test_every_field_has_a_rule_and_those_of_the_policy_are_tried_here() -> None:
    known = {field.name for field in fields(AegisConfig)}
    lerobots = {field.name for field in fields(PreTrainedConfig)}
    assert known - lerobots <= RULES.keys() and RULES.keys() <= known
    written = {name for name, rule in RULES.items() if rule in (Rule.WRITTEN, Rule.DATA)}
    assert CHANGES.keys() | written >= known - lerobots


@pytest.fixture
def saved(make_config: MakeConfig, tmp_path: Path) -> Saved:
    """`saved(protection, **options)`: a folder with the configuration of a checkpoint."""

    def save(protection: str = "none", **options: Any) -> Path:
        config = make_config(protection, **options)
        config.anchor_path = None  # as the policy does once it has read it
        config.save_pretrained(tmp_path)
        return tmp_path

    return save


def _reloaded(folder: Path, **changes: Any) -> AegisConfig:
    config = PreTrainedConfig.from_pretrained(folder)
    assert isinstance(config, AegisConfig)
    for name, value in changes.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_field_is_named_when_it_may_not_change(saved: Saved, name: str) -> None:
    value, options = CHANGES[name]
    folder, rule = saved(**options), RULES[name]
    for resumed in (False, True):
        assert told(check_changes(folder, _reloaded(folder), resumed)) == "", "nothing has changed"
        found = told(check_changes(folder, _reloaded(folder, **{name: value}), resumed))
        if rule is Rule.BUILT or (resumed and rule in UNLIKE):
            assert found.startswith(f"error: --policy.{name}=") and found.count("error") == 1
            assert UNLIKE[rule] in found and len(found) < 500
        else:
            assert found == ""


def test_a_checkpoint_of_before_a_field_was_there_goes_on_with_its_default(saved: Saved) -> None:
    folder = saved()
    whole = read_json(folder / "config.json")
    config = _reloaded(folder)
    for name in RULES.keys() & whole.keys() - {
        "input_features",
        "output_features",
        "vlm",
        "protection",
        "device",
    }:
        if getattr(config, name) == getattr(AegisConfig, name, None):
            write_json(folder / "config.json", {key: value for key, value in whole.items() if key != name})
            assert told(check_changes(folder, config, True)) == "", name


def test_what_follows_a_changed_protection_is_not_told_beside_it(
    saved: Saved, make_config: MakeConfig
) -> None:
    folder = saved("l2_sp")
    found = told(check_changes(folder, make_config("aegis"), resumed=True))
    assert found.count("error") == 1 and "--policy.protection=aegis cannot change" in found
    assert "began with l2_sp" in found and f"--policy.path={folder}" in found


@pytest.mark.parametrize("now", ["none", "aegis"])
@pytest.mark.parametrize("resumed", [False, True])
def test_adapters_go_by_way_of_an_export(
    saved: Saved, make_config: MakeConfig, now: str, resumed: bool
) -> None:
    found = told(check_changes(saved("lora"), make_config(now), resumed))
    assert (
        found.count("error") == 1
        and f"which were trained with lora: lora has adapters, for which {now} has no place" in found
    )
    assert "aegis-export --policy.path=" in found


@pytest.mark.parametrize("before", ["none", "stop_gradient", "aegis"])
def test_adapters_may_come_in_a_new_training(saved: Saved, make_config: MakeConfig, before: str) -> None:
    folder = saved(before)
    assert told(check_changes(folder, make_config("lora"), resumed=False)) == ""
    resumed = told(check_changes(folder, make_config("lora"), resumed=True))
    assert resumed.count("error") == 1 and "--policy.protection=lora cannot change" in resumed


@pytest.mark.parametrize("now", ["l2_sp", "ewc"])
def test_pretrained_weights_that_were_never_kept_are_not_to_be_restored(
    saved: Saved, make_config: MakeConfig, now: str
) -> None:
    folder = saved("freeze")
    found = told(check_changes(folder, make_config(now), resumed=False))
    assert found.count("error") == 1 and f"{now} compares with the pretrained weights, and only" in found
    assert f"aegis-export --policy.path={folder}" in found
    assert told(check_changes(saved("l2_sp"), make_config("ewc"), resumed=False)) == ""


def test_a_checkpoint_of_a_former_version_has_changed_nothing(saved: Saved) -> None:
    folder = saved("aegis", anchor="subspace")
    config = read_json(folder / "config.json")
    for name in ("defaults_taken", "instruction", "optimizer_bits"):
        del config[name]
    write_json(folder / "config.json", {**config, "anchor_share": None})
    assert told(check_changes(folder, _reloaded(folder), resumed=True)) == ""


def _arguments(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *arguments])


def test_other_data_are_compared_with_the_checkpoint(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved()
    write_json(folder / "train_config.json", {"dataset": {"repo_id": "me/first"}})
    features = {"observation.state": {"shape": (5,)}, "action": {"shape": (3,)}}
    data = SimpleNamespace(features=features, repo_id="me/first")
    assert told(check_use(folder, _reloaded(folder), data)) == ""
    features["action"] = {"shape": (7,)}
    found = told(check_use(folder, _reloaded(folder), data))
    assert found.startswith("error: action has the shape [7] in the dataset and [3] in the checkpoint: ")
    assert told(check_use(folder, _reloaded(folder), None)) == ""
    features["action"] = {"shape": (3,)}
    _arguments(monkeypatch, "--resume=true")
    data.repo_id = "me/second"
    found = told(check_use(folder, _reloaded(folder), data))
    assert "warning: training is resumed on me/second and began on me/first" in found


def test_the_configuration_of_another_policy_is_refused(tiny_checkpoint: Path) -> None:
    act = PreTrainedConfig.get_choice_class("act")()
    with pytest.raises(AegisError, match=r"no policy of type act"):
        AegisPolicy.from_pretrained(tiny_checkpoint, config=act)


def test_an_environment_with_other_actions_is_refused_by_its_own_name(tiny_checkpoint: Path) -> None:
    config = PreTrainedConfig.from_pretrained(tiny_checkpoint)
    assert [*check_use(tiny_checkpoint, config, None)] == []
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    (found,) = check_use(tiny_checkpoint, config, None)
    assert "action has the shape [7] in the environment and [4] in the checkpoint" in found.what
