"""What is shipped inside this package, by its name: a VLM with its anchor, and a policy that began from it."""

from pathlib import Path

from aegis_policy.support.errors import AegisError

EMBEDDED_VLM = "embedded"
"""The value of `--policy.vlm` that names the VLM."""

_FOLDER = Path(__file__).parent
_VLM = _FOLDER / "tabletop-vlm"

EMBEDDED_BASE = _FOLDER / "tabletop-base"
"""A policy that reaches and picks up, to be fine-tuned: the value of `--policy.path` for it."""


def embedded_anchor() -> Path:
    """The anchor that belongs to the VLM."""
    return _VLM / "anchor.safetensors"


def resolve(name: str, named: str) -> str:
    """What transformers is to load for `name`.

    Raises:
        AegisError: `embedded`, and the package lacks it.
    """
    if name != EMBEDDED_VLM:
        return name
    if not (_VLM / "config.json").is_file():
        raise AegisError(
            f"{named}: {_VLM} holds no model; reinstall the package or make the model with aegis-pretrain."
        )
    return str(_VLM)
