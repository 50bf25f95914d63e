"""Finding a VLM: what a name stands for, its configuration and its processor.

Weights are loaded, and the model is used, in `vlm`.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.families import FAMILIES, family_of

EMBEDDED_VLM = "embedded"
"""The value of `--policy.vlm` that names the model shipped inside this package."""

_EMBEDDED_DIRECTORY = Path(__file__).parent / "pretrained" / "tabletop-vlm"


def embedded_anchor() -> Path:
    """The anchor that belongs to the embedded VLM."""
    return _EMBEDDED_DIRECTORY / "anchor.safetensors"


def resolve(name: str, named: str) -> str:
    """What transformers is to load for `name`.

    Raises:
        AegisError: `embedded`, and the package lacks it.
    """
    if name != EMBEDDED_VLM:
        return name
    if not (_EMBEDDED_DIRECTORY / "config.json").is_file():
        raise AegisError(
            f"{named}: {_EMBEDDED_DIRECTORY} holds no model; reinstall the package or make "
            "the model with aegis-pretrain."
        )
    return str(_EMBEDDED_DIRECTORY)


def check_vlm(name: str, flag: str) -> None:
    """Find out whether `name` is a VLM of a known family, without loading its weights.

    Raises:
        AegisError: it is not.
    """
    named = f"{flag}={name}"
    load_config(resolve(name, named), named)


def load_config(source: str, named: str) -> Any:
    """The configuration of a VLM of a known family.

    Raises:
        AegisError: it is none.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise AegisError(
            f"{named} is not a transformers model ({first_line(error)}): give a directory with a "
            "config.json, a hub id, or `embedded`."
        ) from error
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise AegisError(
            f"{named} is a `{config.model_type}` model, which transformers does not list as "
            "image-text-to-text: choose a vision-language model."
        )
    if family_of(config.model_type) is None:
        raise AegisError(
            f"{named} is a `{config.model_type}` model; known families are "
            f"{', '.join(sorted(FAMILIES))}: docs/vlms.md shows how to add it."
        )
    return config


def load_processor(source: str, named: str) -> Any:
    """The model's own processor.

    Raises:
        AegisError: there is none.
    """
    try:
        return AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AegisError(
            f"{named} has no readable processor ({first_line(error)}): its directory needs the "
            "tokenizer and preprocessor files beside config.json."
        ) from error


def first_line(error: Exception) -> str:
    """What an error says first."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
