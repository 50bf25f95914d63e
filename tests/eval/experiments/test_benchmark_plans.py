"""The plans of `benchmarks/`: the commands that its figures came from, with flags that those commands have."""

from pathlib import Path

import draccus
import pytest
from benchmark_scripts import load

from aegis_eval.commands.swap import SwapConfig
from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.experiments.plan import Plan
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.support.errors import AegisError

_CONFIGS = {"aegis-swap": SwapConfig, "aegis-vqa": VqaConfig}


def commands(plan: Plan) -> list[list[str]]:
    return [stage.command for jobs in plan.jobs().values() for job in jobs for stage in job.stages]


def check_flags(command: list[str]) -> None:
    """Our own commands and the policy know all they are given."""
    if command[0] in _CONFIGS:
        draccus.parse(config_class=_CONFIGS[command[0]], args=command[1:])
    policy = [flag for flag in command if flag.startswith("--policy.") and "path=" not in flag]
    if any("lerobot-train" in word for word in command):
        flags = [flag.replace("--policy.", "--") for flag in policy if "type=" not in flag]
        draccus.parse(config_class=AegisConfig, args=flags)


def test_the_embedded_base_is_trained_under_the_default_and_what_is_shipped_is_measured(
    tmp_path: Path,
) -> None:
    module = load("embedded_base")
    plan = module.base_plan(
        module.EmbeddedBaseConfig(tmp_path, steps=8, further_steps=4, episodes=4, rollouts=6)
    )
    found = commands(plan)
    assert [command[0] for command in found] == [
        "aegis-record",
        "lerobot-train",
        "lerobot-train",
        "lerobot-eval",
        "aegis-swap",
        "aegis-vqa",
    ]
    for command in found:
        check_flags(command)
    assert {"--policy.type=aegis", "--steps=8", "--save_freq=2"} <= set(found[1])
    begun = f"--policy.path={tmp_path}/first/training/checkpoints/000008/pretrained_model"
    assert {begun, "--steps=4", "--seed=1"} <= set(found[2])
    assert not any("protection" in flag for flag in found[1] + found[2])
    for command in found[3:]:
        assert f"--policy.path={tmp_path}/tabletop-base" in command, "not the checkpoint, which is larger"
    assert "--pairs=3" in found[4]


def test_choices_of_training_get_the_same_time_the_same_data_and_the_same_scenes(tmp_path: Path) -> None:
    module = load("sample_efficiency")
    choices = [name for name in module.CHOICES if name != module.REFERENCE]
    plan = module.efficiency_plan(module.SampleEfficiencyConfig(tmp_path, choices, seeds=2, steps=100))
    found = commands(plan)
    for command in found:
        check_flags(command)
    trainings = [command for command in found if command[0] == "lerobot-train"]
    assert len(trainings) == 2 * len(module.CHOICES)
    assert len({tuple(command) for command in trainings}) == len(trainings)
    assert {f"--dataset.root={tmp_path}/data"} == {
        word for one in trainings for word in one if "root=" in word
    }
    assert "--steps=100" in trainings[0], "the reference"
    assert [command for command in trainings if "--batch_size=32" in command and "--steps=54" in command]
    for program, flags in (
        ("lerobot-eval", {"--env.split=train", "--seed=777000"}),
        ("aegis-vqa", {"--split=val"}),
    ):
        assert all(flags <= set(command) for command in found if command[0] == program)


def test_metaworld_is_recorded_once_and_trained_under_each_protection(tmp_path: Path) -> None:
    module = load("metaworld_skills")
    plan = module.metaworld_plan(module.MetaworldConfig(tmp_path, protections="none,ewc", rollouts=4))
    found = commands(plan)
    run = ["lerobot-train", "lerobot-eval", "aegis-vqa"]
    assert [command[0] for command in found] == ["aegis-record", "aegis-anchor", *run, *run]
    for command in found:
        check_flags(command)
    assert {"--env.type=aegis_metaworld", "--env.image_size=96", "--noise=0.3"} <= set(found[0])
    assert {"--env.type=aegis_metaworld", "--env.image_size=96", "--eval.batch_size=4"} <= set(found[3])
    assert f"--policy.anchor_path={tmp_path}/anchors/fisher.safetensors" in found[5]
    assert not any("--env.split" in flag for command in found for flag in command)


@pytest.mark.parametrize(
    ("name", "entry", "options", "sentence"),
    [
        ("embedded_base", "embedded_base", {"episodes": 0}, "--episodes=0 must be at least 1"),
        ("sample_efficiency", "sample_efficiency", {"seeds": 0}, "--seeds=0 must be at least 1"),
        (
            "sample_efficiency",
            "sample_efficiency",
            {"choices": ["sgd"]},
            "--choices has sgd: it takes muon, adamw-5e-4",
        ),
        ("metaworld_skills", "metaworld", {"protections": "none,magic"}, "--protections: magic is unknown"),
    ],
)
def test_flags_that_cannot_be_are_named(
    tmp_path: Path, name: str, entry: str, options, sentence: str
) -> None:
    module = load(name)
    config = {
        "embedded_base": "EmbeddedBaseConfig",
        "metaworld_skills": "MetaworldConfig",
        "sample_efficiency": "SampleEfficiencyConfig",
    }[name]
    with pytest.raises(AegisError, match=sentence):
        getattr(module, entry)(getattr(module, config)(tmp_path / "new", **options))
    assert not (tmp_path / "new").exists()
