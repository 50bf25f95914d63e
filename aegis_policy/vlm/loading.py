"""Finding a VLM: its configuration, its processor, how it generates.

No code of a model's folder is run. Its weights are read in `weights`; `checks` says whether what was found can be
trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils import cached_file

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.families import FAMILIES, Family, family_of
from aegis_policy.vlm.generation import IF_THERE, load_generation
from aegis_policy.vlm.prompts import Prompts


@dataclass(frozen=True)
class VLMFiles:
    """What a VLM is, but for its weights.

    Attributes:
        source: what transformers loads.
        named: how errors call it.
        config: its configuration.
        family: of its type.
        processor: its own, with a tokenizer and an image processor.
        generation: how it generates, as its folder has it.
        findings: what is not kept as the folder has it.
    """

    source: str
    named: str
    config: Any
    family: Family
    processor: Any
    generation: GenerationConfig
    findings: tuple[Finding, ...] = ()

    @property
    def prompts(self) -> Prompts:
        """What makes the model's inputs."""
        return Prompts(self.processor, self.family, self.named, longest_prompt(self.config))


def read_files(source: str, named: str) -> VLMFiles:
    """Read all of a VLM but its weights.

    Args:
        source: what `resolve` returned.
        named: how errors call it.

    Raises:
        AegisError: it is no VLM of a known family, or lacks a file.
    """
    config, family = load_config(source, named)
    processor = load_processor(source, named)
    generation, findings = load_generation(source, named, config)
    return VLMFiles(source, named, config, family, processor, generation, tuple(findings))


def load_config(source: str, named: str) -> tuple[Any, Family]:
    """The configuration of a VLM of a known family, and the family.

    Raises:
        AegisError: it is none, or one that cannot be trained.
    """
    try:
        if Path(source).is_file():
            raise NotADirectoryError("a file, where a folder is wanted")
        said, _ = PreTrainedConfig.get_config_dict(source)
        adapter = cached_file(source, "adapter_config.json", **IF_THERE)
        kind = said.get("model_type")
        config = (
            AutoConfig.from_pretrained(source, trust_remote_code=False) if kind in CONFIG_MAPPING else None
        )
    except Exception as error:  # whatever a configuration's own class does with its values
        what = "" if Path(source).exists() else f"no folder {source} here, and of the hub: "
        raise AegisError(
            f"{named} is not a transformers model ({what}{one_line(error)}): give a directory with a "
            "config.json, a hub id, or `embedded`."
        ) from error
    if kind is None and "type" in said:
        raise AegisError(
            f"{named} is a LeRobot policy of type {said['type']}, not a VLM: name the VLM, or export that of an aegis "
            "policy with aegis-export."
        )
    if kind is None:
        raise AegisError(
            f"{named} is not a transformers model (there is no config.json that says a model_type): give a directory "
            "with one, a hub id, or `embedded`."
        )
    if config is None:
        raise AegisError(
            f"{named} is a `{kind}` model, which transformers {transformers.__version__} does not know, and code of a "
            f"model's own is never run: {_known_families()}."
        )
    if type(config) not in transformers.AutoModelForImageTextToText._model_mapping:
        raise AegisError(
            f"{named} is a `{kind}` model, which transformers does not list as "
            "image-text-to-text: choose a vision-language model."
        )
    family = family_of(config.model_type)
    if family is None:
        raise AegisError(f"{named} is a `{kind}` model; {_known_families()}.")
    if (method := _find(said, _quantised)) is not None:
        raise AegisError(
            f"{named} is quantised ({method}), and such weights do not learn: name the original model."
        )
    if (kernel := _find(said, _foreign_attention)) is not None:
        raise AegisError(
            f"{named} computes attention with code of the hub ({kernel}), which is never run: take it out of its "
            "config.json."
        )
    if adapter is not None:
        raise AegisError(
            f"{named} holds an adapter (adapter_config.json), which would change its weights: merge it, with "
            "merge_and_unload() of peft, and name what was saved then."
        )
    return config, family


def load_processor(source: str, named: str) -> Any:
    """The model's own processor; it pads, and knows its tokenizer's chat template if it has none itself.

    Raises:
        AegisError: there is none, or it lacks a part.
    """
    try:
        processor = transformers.AutoProcessor.from_pretrained(source, trust_remote_code=False)
        parts = [part for part in ("tokenizer", "image_processor") if not hasattr(processor, part)]
        if parts:
            raise AttributeError(f"a {type(processor).__name__} without {' and '.join(parts)}")
    except Exception as error:  # whatever a processor's own class does with its files
        raise AegisError(
            f"{named} has no readable processor ({one_line(error)}): its directory needs the "
            "tokenizer and preprocessor files beside config.json."
        ) from error
    tokenizer = processor.tokenizer
    if tokenizer.eos_token is None:
        raise AegisError(
            f"{named} has a tokenizer without an end (eos_token), so no answer would end: name it in its "
            "tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what is padding is masked
    if getattr(processor, "chat_template", None) is None:
        processor.chat_template = getattr(tokenizer, "chat_template", None)
    return processor


def longest_prompt(config: Any) -> int | None:
    """How many tokens a model reads at once; None where its configuration does not say."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def _known_families() -> str:
    return f"known families are {', '.join(sorted(FAMILIES))}: docs/vlms.md shows how to add it"


def _find(said: Any, refused: Callable[[str, Any], Any]) -> Any:
    """What `refused` makes of the first key and value of a nested configuration that it objects to."""
    if not isinstance(said, dict):
        return None
    found = (refused(key, value) or _find(value, refused) for key, value in said.items())
    return next((each for each in found if each), None)


def _quantised(key: str, value: Any) -> Any:
    return key == "quantization_config" and value and (_find(value, _method) or "its config.json says")


def _method(key: str, value: Any) -> Any:
    return key == "quant_method" and value


def _foreign_attention(key: str, value: Any) -> Any:
    return key.endswith("attn_implementation") and isinstance(value, str) and "/" in value and value
