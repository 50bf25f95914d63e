"""The VLM that is shipped inside this package, by its name: where it lies, and its anchor."""

from pathlib import Path

from aegis_policy.support.errors import AegisError

EMBEDDED_VLM = "embedded"
"""The value of `--policy.vlm` that names it."""

_DIRECTORY = Path(__file__).parent / "pretrained" / "tabletop-vlm"


def embedded_anchor() -> Path:
    """The anchor that belongs to it."""
    return _DIRECTORY / "anchor.safetensors"


def resolve(name: str, named: str) -> str:
    """What transformers is to load for `name`.

    Raises:
        AegisError: `embedded`, and the package lacks it.
    """
    if name != EMBEDDED_VLM:
        return name
    if not (_DIRECTORY / "config.json").is_file():
        raise AegisError(
            f"{named}: {_DIRECTORY} holds no model; reinstall the package or make the model with aegis-pretrain."
        )
    return str(_DIRECTORY)
