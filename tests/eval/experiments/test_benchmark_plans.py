"""The plans of `benchmarks/`: the commands that its figures came from, with flags that those commands have."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import draccus
import pytest

from aegis_eval.commands.swap import SwapConfig
from aegis_eval.commands.vqa import VqaConfig
from aegis_eval.experiments.plan import Plan
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.support.errors import AegisError

_CONFIGS = {"aegis-swap": SwapConfig, "aegis-vqa": VqaConfig}


def load(name: str) -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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


def test_the_closed_loop_records_trains_on_two_processes_and_measures(tmp_path: Path) -> None:
    module = load("closed_loop")
    plan = module.closed_loop_plan(module.ClosedLoopConfig(tmp_path, anchor="gaussian", minutes=1))
    found = commands(plan)
    assert [command[0] for command in found] == [
        "aegis-record",
        "torchrun",
        "lerobot-eval",
        "aegis-swap",
        "aegis-vqa",
    ]
    for command in found:
        check_flags(command)
    assert {"--nproc_per_node=2", "--policy.anchor=gaussian", "--batch_size=16"} <= set(found[1])
    (job,) = plan.jobs()["closed loop"]
    assert job.stages[1].limit == 60, "seconds"
    (lost,) = [int(flag.partition("=")[2]) for flag in found[1] if flag.startswith("--save_freq=")]
    assert 100 < lost <= 200, "steps, of a training that runs out of time"
    assert f"--policy.path={tmp_path}/training/checkpoints/last/pretrained_model" in found[2]


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
        ("closed_loop", "closed_loop", {"anchor": "magic"}, "--anchor=magic is unknown"),
        ("metaworld_skills", "metaworld", {"protections": "none,magic"}, "--protections: magic is unknown"),
    ],
)
def test_flags_that_cannot_be_are_named(
    tmp_path: Path, name: str, entry: str, options, sentence: str
) -> None:
    module = load(name)
    config = {"closed_loop": "ClosedLoopConfig", "metaworld_skills": "MetaworldConfig"}[name]
    with pytest.raises(AegisError, match=sentence):
        getattr(module, entry)(getattr(module, config)(tmp_path / "new", **options))
    assert not (tmp_path / "new").exists()
