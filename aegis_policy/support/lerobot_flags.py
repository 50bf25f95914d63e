"""What LeRobot's command line says and its parsed configuration does not, read again as LeRobot itself does."""

from pathlib import Path

from lerobot.configs import parser

from aegis_policy.support.json_files import read_json

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
    named = parser.parse_arg("config_path")
    if said is None and named is not None:
        path = Path(named)
        said = _resume_in(path / _TRAINING_CONFIG_FILE if path.is_dir() else path)
    return str(said).lower() in ("true", "yes", "on", "1")


def _resume_in(file: Path) -> str | None:
    """What a training's configuration says of it, if that can be read."""
    try:
        return str(read_json(file).get("resume"))
    except (OSError, ValueError, AttributeError):
        return None
