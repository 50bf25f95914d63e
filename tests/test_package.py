"""What an installation promises: LeRobot finds the plugin, light parts stay light, no machine or registry is named."""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def test_lerobot_discovers_policy_optimizer_processor_step_and_environment() -> None:
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs import EnvConfig
    from lerobot.optim import OptimizerConfig
    from lerobot.processor import ProcessorStepRegistry
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    assert "aegis" in PreTrainedConfig.get_known_choices()
    assert "aegis_adamw" in OptimizerConfig.get_known_choices()
    assert "aegis_vectors" in ProcessorStepRegistry.list()
    assert "aegis_tabletop" in EnvConfig.get_known_choices()


def test_every_command_exists() -> None:
    ours = {
        point.name: point
        for point in entry_points(group="console_scripts")
        if point.dist and point.dist.name == "lerobot_policy_aegis"
    }
    measure = ["vqa", "swap", "baseline", "drift", "action-error", "export", "merge", "act"]
    names = ["record", "pretrain", "anchor", "demo", "ablate", "compare", "report", "doctor", *measure]
    assert set(ours) == {f"aegis-{name}" for name in names}
    modules = (ROOT / "eval" / "aegis_eval" / "commands").glob("[!_]*.py")
    mains = {f"aegis_eval.commands.{module.stem}:main" for module in modules}
    assert {point.value for point in ours.values()} == mains | {"aegis_envs.recording.record:main"}
    assert all(callable(point.load()) for point in ours.values())


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("aegis_envs.tabletop.env", ["torch", "lerobot", "transformers"]),
        ("aegis_policy.isolation", ["lerobot", "transformers", "draccus"]),
        ("aegis_policy.support.files", ["torch", "lerobot"]),
        ("aegis_eval.questions.store", ["torch", "lerobot"]),
        ("aegis_envs.recording.sources", ["torch", "lerobot", "datasets"]),
    ],
)
def test_light_modules_import_nothing_heavy(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


@pytest.mark.parametrize(
    ("commands", "heavy"),
    [
        (["envs.recording.recorder"], ["torch._dynamo", "lerobot.envs", "lerobot.datasets"]),
        (["eval.commands.work.export"], ["torch", "lerobot", "transformers"]),
        (
            [f"eval.commands.work.{name}" for name in ("vqa", "anchor", "drift", "pretrain")],
            ["torch._dynamo", "lerobot.configs", "transformers.modeling_utils"],
        ),
        (
            [f"eval.commands.work.{name}" for name in ("ablate", "compare", "action_error")],
            ["transformers", "lerobot.processor", "lerobot.policies", "lerobot.datasets", "matplotlib"],
        ),
    ],
    ids=lambda value: value[0],
)
def test_what_a_command_imports_for_seconds_waits_until_it_is_used(
    commands: list[str], heavy: list[str]
) -> None:
    modules = ", ".join(f"aegis_{command}" for command in commands)
    test_light_modules_import_nothing_heavy(modules, heavy)


_ASK_EACH = """
import sys
from importlib import import_module

heavy = ["torch", "transformers", "lerobot", "datasets", "accelerate", "gymnasium", "mujoco", "matplotlib", "scipy"]
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        import_module(f"aegis_eval.commands.{name}").main()
    except SystemExit as ended:
        assert ended.code == 0, name
    assert not set(heavy) & set(sys.modules), f"{name} loads {set(heavy) & set(sys.modules)}"
"""


def test_help_needs_nothing_of_what_a_command_works_with() -> None:
    names = sorted(path.stem for path in (ROOT / "eval" / "aegis_eval" / "commands").glob("[!_]*.py"))
    command = [sys.executable, "-c", _ASK_EACH, *names]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.count("usage:") == len(names) > 1


def test_lock_names_versions_and_no_addresses() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert f"lerobot=={version('lerobot')}" in lock
    assert not re.search(r"https?://|index-url|file:", lock)


def test_shipped_weights_stay_under_twenty_megabytes() -> None:
    weights = list((ROOT / "aegis_policy").rglob("*.safetensors"))
    large = {path.parent.name + "/" + path.name for path in weights if path.stat().st_size > 100_000}
    assert large == {
        "tabletop-vlm/model.safetensors",
        "tabletop-vlm/anchor.safetensors",
        "tabletop-base/model.safetensors",
    }
    assert sum(path.stat().st_size for path in weights) < 20_000_000


def test_contributing_says_what_each_dependency_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    groups = [project["project"]["dependencies"], *extras.values(), *project["dependency-groups"].values()]
    needed = {re.split(r"[\[<>=,;]", requirement)[0] for group in groups for requirement in group}
    guide = (ROOT / "CONTRIBUTING.md").read_text().split("## Dependencies\n")[1]
    named = set(re.findall(r"[\w-]+", " ".join(re.findall(r"^\| (.*?) \|", guide, re.M))))
    assert needed - named == set()
    assert set(extras) - named == set()


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_benchmark_scripts_find_what_they_import(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert callable(importlib.import_module(script).main)
