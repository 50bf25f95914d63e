"""What LeRobot's command line says and its parsed configuration does not, read again as LeRobot itself does."""

from pathlib import Path
from typing import Any

import yaml
from lerobot.configs import parser

_TRAINING_CONFIG_FILE = "train_config.json"


def given_flags() -> set[str]:
    """The policy's fields that the command line names, or the configuration file that it names.

    A field alone does not tell a value that was given from the same value in a checkpoint.
    """
    return set(_given())


def typed(name: str, value: Any) -> Any:
    """A text or path of the policy as it was typed, where `value` is what YAML, as which LeRobot reads flags, made of
    it: `pick # up` would be `pick`, and `pick: up` a mapping. What is quoted for YAML, or empty to it (`null`), stays.
    """
    said = _given().get(name)
    if said is None or str(value) == said or said[:1] in ("'", '"') or said.lower() in ("", "~", "null"):
        return value
    try:
        made = yaml.safe_load(said)
    except yaml.YAMLError:
        return value
    return said if str(made) == str(value) else value


def resuming() -> bool:
    """Whether this process resumes a training."""
    said = parser.parse_arg("resume")
    if said is None:
        said = _configured("resume")
    return str(said).lower() in ("true", "yes", "on", "1")


def chosen_episodes() -> list[int] | None:
    """The episodes that `--dataset.episodes` chooses; None is all of them."""
    found = dataset_option("episodes")
    return found if isinstance(found, list) and all(isinstance(each, int) for each in found) else None


def dataset_option(name: str) -> Any:
    """What `--dataset.NAME` says; None is nothing.

    LeRobot tells a policy its dataset, and not how it is read.
    """
    given = parser.parse_arg(f"dataset.{name}")
    if given is None:
        return _configured("dataset", name)
    try:
        return yaml.safe_load(given)
    except yaml.YAMLError:
        return None  # LeRobot says so


def _given() -> dict[str, str]:
    """What is given for fields of the policy, by name, as text."""
    found, name = {}, None
    for argument in [*parser.get_yaml_overrides("policy"), *(parser.get_cli_overrides("policy") or [])]:
        if argument.startswith("--"):
            name, _, found[name] = argument.removeprefix("--").partition("=")
        elif name is not None:
            found[name] = argument
    return found


def _configured(*keys: str) -> Any:
    """What the training configuration that `--config_path` names has under these keys; None if that cannot be read."""
    named = parser.parse_arg("config_path")
    if named is None:
        return None
    path = Path(named)
    try:
        found = yaml.safe_load((path / _TRAINING_CONFIG_FILE if path.is_dir() else path).read_text())
        for key in keys:
            found = found[key]
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None
    return found
