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
    flags = [*parser.get_yaml_overrides("policy"), *(parser.get_cli_overrides("policy") or [])]
    return {flag.removeprefix("--").partition("=")[0] for flag in flags if flag.startswith("--")}


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
