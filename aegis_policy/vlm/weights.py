"""A VLM's weights: read from safetensors files, or random for an architecture. Pickled weights are never loaded."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from aegis_policy.support.errors import AegisError, one_line, some
from aegis_policy.support.finding import Finding
from aegis_policy.support.json_files import read_json
from aegis_policy.vlm.loading import VLMFiles

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


def load_model(files: VLMFiles, **options: Any) -> "tuple[transformers.PreTrainedModel, list[Finding]]":
    """The model with its weights, of safetensors files only, and a warning if they hold more than it uses.

    Args:
        files: what it is.
        options: of transformers' `from_pretrained`, such as `dtype`; `device_map="meta"` reads no values.

    Raises:
        AegisError: the weights are not there, cannot be read, or are not those of this configuration.
    """
    again = "download the model again or name another directory"
    try:
        model, found = transformers.AutoModelForImageTextToText.from_pretrained(
            files.source,
            config=files.config,
            generation_config=files.generation,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are named below
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        raise AegisError(
            f"{files.named} needs what is not installed ({one_line(error)}): install it, or take it out of config.json."
        ) from error
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever transformers makes of broken files
        pickled = _pickled_weights(files.source)
        if pickled is not None:
            raise AegisError(
                f"{files.named} has no safetensors weights, only {pickled}, a pickle, which could run code and is "
                "never loaded: convert it where you trust it, with transformers' save_pretrained."
            ) from error
        if Path(files.source).parent.joinpath("policy_preprocessor.json").is_file():
            again = "it is the folder of a policy's architecture, so name a VLM that aegis-export made of the policy"
        reason = _unreadable_weights(files.source) or one_line(error)
        raise AegisError(
            f"{files.named} has a configuration but no readable safetensors weights ({reason}): {again}."
        ) from error
    if missing := sorted(found["missing_keys"]):
        raise AegisError(f"{files.named} lacks weights of its own architecture ({some(missing)}): {again}.")
    if mismatched := sorted(found["mismatched_keys"]):
        name, there, wanted = mismatched[0]
        raise AegisError(
            f"{files.named} has weights of other shapes than its config.json says ({name} is {tuple(there)}, not "
            f"{tuple(wanted)}): {again}."
        )
    findings = []
    if unused := sorted(found["unexpected_keys"]):
        what = f"{files.named} holds weights that its config.json has no place for ({some(unused)})"
        findings.append(
            Finding("warning", what, "they are left out; see that the configuration is the model's")
        )
    return model, findings


def require_shapes(files: VLMFiles, shapes: Mapping[str, Sequence[int]]) -> None:
    """See that a configuration is that of some weights, before a model of it takes time and memory.

    Args:
        files: whose configuration it is.
        shapes: of the weights, by their names in the model; adapters may be among them.

    Raises:
        AegisError: it is another's.
    """
    try:
        if (most := _most_layers(files.config.to_dict())) > len(shapes):
            raise ValueError(f"{most} layers, and {len(shapes)} weights")
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(files.config)
        held = {name.replace(".base_layer.", "."): tuple(shape) for name, shape in shapes.items()}
        known = set(held.values())  # of two names of one weight, a file has one
        for name, parameter in model.named_parameters():
            if held.get(name, parameter.shape) != parameter.shape or parameter.shape not in known:
                raise ValueError(f"{name} would be {tuple(parameter.shape)}, and is {held.get(name)}")
    except Exception as error:  # whatever the modelling code does with the configuration's values
        raise AegisError(
            f"{files.named} has a config.json that is not of the weights ({one_line(error)}): restore it from where "
            "the checkpoint was saved."
        ) from error


def _most_layers(config: Mapping[str, Any]) -> int:
    """The largest number that a configuration gives for layers, of which each takes time to build."""
    found = [0]
    for name, value in config.items():
        if isinstance(value, Mapping):
            found.append(_most_layers(value))
        elif isinstance(value, int) and re.fullmatch("num_.*layers|depth", str(name)):
            found.append(value)
    return max(found)


def build_model(files: VLMFiles) -> "transformers.PreTrainedModel":
    """The model with random weights, in float32.

    Raises:
        AegisError: no model can be built of its configuration.
    """
    try:
        model = transformers.AutoModelForImageTextToText.from_config(files.config, dtype=torch.float32)
    except Exception as error:  # whatever the modelling code does with the configuration's values
        raise AegisError(
            f"{files.named} has a config.json that no model can be built of ({one_line(error)}): take it from where "
            "the model came."
        ) from error
    model.generation_config = files.generation
    return model


def _pickled_weights(source: str) -> str | None:
    """A file of pickled weights in a folder that has no others."""
    folder = Path(source)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    return next((each.name for each in sorted(folder.iterdir()) if each.suffix in _PICKLED), None)


def _unreadable_weights(source: str) -> str | None:
    """The first of a folder's weight files that is absent or not whole."""
    folder = Path(source)
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    names = [each.name for each in folder.glob(SAFE_WEIGHTS_NAME)]
    try:
        if not names and index.is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            with safe_open(folder / name, "pt"):
                pass
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        return f"{name if names else index.name}: {one_line(error)}"
    return None
