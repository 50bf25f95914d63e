"""What the configuration refuses, resolves and keeps: LeRobot's files go in and out, old ones too."""

import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import draccus
import pytest
from lerobot.configs import PreTrainedConfig, parser
from lerobot.policies.rtc import RTCConfig

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.protections import OPTIONS, PROTECTIONS
from aegis_policy.support.errors import AegisError

MakeConfig = Callable[..., AegisConfig]
OPEN = ("penalty", "anchor_share")


def _reloaded(config: AegisConfig, folder: Path, *flags: str) -> AegisConfig:
    """As `--policy.path=FOLDER` with further flags reads what a checkpoint keeps."""
    config.anchor_path = None  # what the policy does once it has read the file
    config.save_pretrained(folder)
    loaded = PreTrainedConfig.from_pretrained(folder, cli_overrides=list(flags))
    assert isinstance(loaded, AegisConfig)
    return loaded


def _values(config: AegisConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in OPEN if getattr(config, name) is not None}


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"dtype": "float8"}, "--policy.dtype=float8"),
        ({"n_action_steps": 5}, "--policy.n_action_steps=5"),
        ({"flow_samples": 0}, "--policy.flow_samples=0"),
        ({"num_inference_steps": 0}, "--policy.num_inference_steps=0"),
        ({"expert_depth": 0}, "--policy.expert_depth=0"),
        ({"time_alpha": 0.0}, "--policy.time_alpha=0.0"),
        ({"time_max": 1.5}, "--policy.time_max=1.5"),
        ({"n_obs_steps": 2}, "--policy.n_obs_steps=2"),
        ({"expert_heads": 3}, "--policy.expert_heads=3"),
        ({"vqa_probe_freq": -1}, "--policy.vqa_probe_freq=-1"),
        (
            {"rtc_config": RTCConfig(execution_horizon=0)},
            "--policy.rtc_config.execution_horizon=0 must be at least 1",
        ),
        ({"rtc_config": RTCConfig(max_guidance_weight=float("nan"))}, "--policy.rtc_config=RTCConfig"),
        ({"compile_model": True, "compile_mode": "fast"}, "--policy.compile_mode=fast is unknown"),
        (
            {"rtc_config": RTCConfig(execution_horizon=5)},
            "--policy.rtc_config.execution_horizon=5 must be at most --policy.chunk_size=4",
        ),
        ({"optimizer_lr": None}, "--policy.optimizer_lr is null: give a value"),
        ({"optimizer_betas": (None, 0.9)}, "--policy.optimizer_betas is null"),
        ({"time_alpha": 1e300}, "--policy.time_alpha=1e"),
        ({"normalization_mapping": {"action": "MEAN_STD"}}, "normalization_mapping has 'action'"),
        ({"instruction": {"Task": "pick"}}, "instruction is no text but {'Task': 'pick'}: put it in quotes"),
        ({"instruction": True}, "instruction is no text but True"),
        (
            {"vqa_probe_samples": 5},
            "vqa_probe_samples changes nothing unless --policy.vqa_probe_freq is given",
        ),
        (
            {"vqa_probe_data": "okvqa"},
            "vqa_probe_data changes nothing unless --policy.vqa_probe_freq is given",
        ),
        (
            {"protection": "freeze", "expert_only_steps": 5},
            "expert_only_steps changes nothing with --policy.protection=freeze, whose backbone does not learn",
        ),
        (
            {"protection": "stop_gradient", "optimizer_eps_backbone": 1e-4},
            "optimizer_eps_backbone changes nothing with --policy.protection=stop_gradient",
        ),
    ],
)
def test_impossible_options_are_named(
    make_config: Callable[..., AegisConfig], option: dict[str, Any], named: str
) -> None:
    with pytest.raises(AegisError, match=named):
        make_config(**{"protection": "none", **option})


def test_configuration_survives_the_disk(make_config: Callable[..., AegisConfig], tmp_path: Any) -> None:
    config = make_config("aegis", train_projector=True, dtype="bfloat16", optimizer_betas=(0.8, 0.9))
    config.anchor_info = {"samples": "3000"}
    config.save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_every_option_of_a_protection_is_a_flag() -> None:
    flags = {each.name: each for each in fields(AegisConfig)}
    for protection in PROTECTIONS.values():
        for option in fields(protection.Options):
            assert option.default is not MISSING and flags[option.name].default == option.default
    assert {"penalty", "lora_rank", "replay_data", "anchor", "anchor_share"} <= OPTIONS


LEFT_OPEN = [
    ("none", {}, {}),
    ("freeze", {}, {}),
    ("lora", {}, {}),
    ("lora", {"lora_null_space": True}, {"anchor_share": 0.07}),
    ("w2_penalty", {}, {"penalty": 0.002}),
    ("l2_sp", {}, {"penalty": 0.01}),
    ("decoupled_l2_sp", {}, {"penalty": 10.0}),
    ("maps", {}, {"penalty": 1.0}),
    ("ewc", {}, {"penalty": 0.01}),
    ("distill", {}, {"penalty": 1.0}),
    ("replay", {}, {"penalty": 1.0}),
    ("knowledge_insulation", {}, {"penalty": 1.0}),
    ("aegis", {"anchor": "subspace"}, {"anchor_share": 0.07}),
    ("aegis", {"anchor": "gaussian"}, {}),
    ("aegis", {"anchor": "gaussian+subspace"}, {"anchor_share": 0.07}),
]
"""The values with which published runs were made: of another default, their checkpoints would train on otherwise."""


@pytest.mark.parametrize(("protection", "options", "values"), LEFT_OPEN)
def test_options_left_open_are_resolved_and_saved(
    make_config: MakeConfig, tmp_path: Path, protection: str, options: dict[str, Any], values: dict[str, Any]
) -> None:
    config = make_config(protection, **options)
    assert _values(config) == values
    loaded = _reloaded(config, tmp_path)
    assert loaded == config and _values(loaded) == values
    written = json.loads((tmp_path / "config.json").read_text())
    assert {name: written[name] for name in values} == values


@pytest.mark.parametrize(("protection", "options", "values"), LEFT_OPEN)
def test_a_checkpoint_from_before_they_were_saved_has_the_defaults_of_then(
    make_config: MakeConfig, tmp_path: Path, protection: str, options: dict[str, Any], values: dict[str, Any]
) -> None:
    make_config(protection, **options).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["defaults_taken"]
    old = {**written, **dict.fromkeys(OPEN), "anchor_path": None}
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AegisConfig) and _values(loaded) == values


def test_another_default_of_a_later_version_leaves_a_checkpoint_alone(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("l2_sp")
    monkeypatch.setattr(PROTECTIONS["l2_sp"], "default_penalty", 7.0)
    assert make_config("l2_sp").penalty == 7.0
    assert _reloaded(config, tmp_path).penalty == 0.01
    assert _reloaded(config, tmp_path, "--protection=none").penalty is None


@pytest.mark.parametrize(
    ("before", "options", "flags", "values"),
    [
        ("l2_sp", {}, ["--protection=none"], {}),
        ("l2_sp", {}, ["--protection=replay"], {"penalty": 1.0}),
        ("l2_sp", {}, ["--protection=replay", "--penalty=0.5"], {"penalty": 0.5}),
        ("distill", {"penalty": 0.3}, ["--protection=l2_sp"], {"penalty": 0.3}),
        ("aegis", {"anchor": "subspace"}, ["--protection=freeze"], {}),
        ("aegis", {"anchor": "subspace"}, ["--anchor=gaussian"], {}),
        (
            "aegis",
            {"anchor": "subspace", "anchor_share": 0.3},
            ["--anchor=gaussian+subspace"],
            {"anchor_share": 0.3},
        ),
        ("none", {}, ["--protection=aegis"], {"anchor_share": 0.07}),
    ],
)
def test_under_another_protection_what_was_left_open_is_open_again(
    make_config: MakeConfig,
    tmp_path: Path,
    before: str,
    options: dict[str, Any],
    flags: list[str],
    values: dict[str, Any],
) -> None:
    assert _values(_reloaded(make_config(before, **options), tmp_path, *flags)) == values


@pytest.mark.parametrize(
    ("before", "options", "flags", "values"),
    [
        ("distill", {}, ["--protection=l2_sp", "--penalty=1.0"], {"penalty": 1.0}),
        ("distill", {}, ["--protection", "l2_sp", "--penalty", "1.0"], {"penalty": 1.0}),
        (
            "aegis",
            {"anchor": "subspace"},
            ["--anchor=gaussian+subspace", "--anchor_share=0.07"],
            {"anchor_share": 0.07},
        ),
    ],
)
def test_a_flag_counts_though_the_checkpoints_protection_had_taken_the_same_value(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str,
    options: dict[str, Any],
    flags: list[str],
    values: dict[str, Any],
) -> None:
    config = make_config(before, **options)
    monkeypatch.setattr(sys, "argv", ["lerobot-train", *(flag.replace("--", "--policy.") for flag in flags)])
    assert parser.get_cli_overrides("policy") == flags, "what lerobot-train hands on"
    loaded = _reloaded(config, tmp_path, *flags)
    assert _values(loaded) == values
    kept = loaded.defaults_taken or {}
    assert not kept.keys() & {"penalty", "anchor_share"}, (
        "what was given is not open should the protection change again"
    )


@pytest.mark.parametrize(
    ("before", "options", "protection", "sentence"),
    [
        ("l2_sp", {"penalty": 0.3}, "none", "--policy.penalty changes nothing .* give its default, null"),
        ("aegis", {"anchor": "gaussian"}, "none", "--policy.anchor changes .* give its default, subspace"),
    ],
)
def test_what_was_given_is_refused_under_a_protection_that_does_not_know_it(
    make_config: MakeConfig,
    tmp_path: Path,
    before: str,
    options: dict[str, Any],
    protection: str,
    sentence: str,
) -> None:
    config = make_config(before, **options)
    with pytest.raises(AegisError, match=sentence):
        _reloaded(config, tmp_path, f"--protection={protection}")
    (name,) = options
    default = sentence.rpartition(" ")[2]
    reloaded = _reloaded(config, tmp_path, f"--protection={protection}", f"--{name}={default}")
    assert reloaded.protection == protection, "as the sentence says"


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        ("pick: the cube", "pick: the cube"),
        ("pick #2 up", "pick #2 up"),
        ("# all", "# all"),
        ("on", "on"),
        ("007", "007"),
        ("[left]", "[left]"),
        ("pick it up", "pick it up"),
        ("null", None),
    ],
)
def test_a_text_is_what_was_typed_and_not_what_yaml_makes_of_it(
    said: str,
    taken: str | None,
    make_config: Callable[..., AegisConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    saved = make_config("none", instruction="reach")
    saved.save_pretrained(tmp_path)
    for given in ([f"--policy.instruction={said}"], ["--policy.instruction", said]):
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *given])
        flags = [each.replace("policy.", "") for each in given]
        assert draccus.parse(AegisConfig, args=["--device=cpu", *flags]).instruction == taken
        assert PreTrainedConfig.from_pretrained(tmp_path, cli_overrides=flags).instruction == taken
        assert PreTrainedConfig.from_pretrained(tmp_path).instruction == "reach", "another policy's own"


def test_a_text_may_be_quoted_for_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-train", "--policy.instruction='pick: up'"])
    assert (
        draccus.parse(AegisConfig, args=["--device=cpu", "--instruction='pick: up'"]).instruction
        == "pick: up"
    )


def test_a_path_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["lerobot-train", "--policy.anchor_path=/runs #2/a.safetensors"])
    config = draccus.parse(AegisConfig, args=["--device=cpu", "--anchor_path=/runs #2/a.safetensors"])
    assert config.anchor_path == Path("/runs #2/a.safetensors")
