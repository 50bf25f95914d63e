"""What is asked of a VLM before it is trained; `aegis-doctor` asks the same."""

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from aegis_policy.support.finding import Finding
from aegis_policy.vlm.loading import load_config, load_processor
from aegis_policy.vlm.prompts import Prompts

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone

_SENTENCE = "Where is the red cube, and what lies beside it?"
_SHOWN = 300
"""Characters of somebody else's error."""


def check_saving(vlm: "VLMBackbone") -> Iterator[Finding]:
    """See that what a checkpoint keeps of a VLM, weights apart, can be written, and read again as the same model.

    Written is a temporary folder; no weights are made.
    """
    with TemporaryDirectory(prefix="aegis-vlm-") as folder:
        try:
            vlm.save_architecture(folder)
            config, processor = load_config(folder, folder), load_processor(folder, folder)
            with torch.device("meta"):
                shapes = _shapes(AutoModelForImageTextToText.from_config(config))
            prompts = Prompts(processor, vlm.family, vlm.name, vlm.prompts.longest)
            changed = _difference(_sample(vlm.prompts), _sample(prompts))
        except Exception as error:  # whatever a model's own configuration or processor does
            yield Finding(
                "error",
                f"{vlm.name} cannot be saved in a checkpoint ({_reason(error)})",
                "mend what it names in the model's own files",
            )
            return
    if shapes != _shapes(vlm.model):
        changed = "the shapes of its weights"
    if changed is not None:
        yield Finding(
            "error",
            f"{vlm.name} would not be the same model when it is read from a checkpoint: {changed} would change",
            "mend its configuration and processor files, so that transformers saves all they say",
        )


def _reason(error: Exception) -> str:
    """What an error says, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """The shapes of a model's own weights by name; adapters are left out."""
    return {
        name.replace(".base_layer", ""): x.shape
        for name, x in model.named_parameters()
        if ".lora_" not in name
    }


def _sample(prompts: Prompts) -> dict[str, Tensor]:
    """Model inputs of a question, and of what a robot with two cameras is told."""
    view = torch.linspace(0, 1, 3 * 40 * 56).view(1, 3, 40, 56)
    picture = (view[0] * 255).byte().permute(1, 2, 0).numpy()
    asked, told = prompts.of_questions([picture], [_SENTENCE]), prompts.of_cameras([view, view], [_SENTENCE])
    return {**{f"{key} of a question": x for key, x in asked.items()}, **told}


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """The first key whose tensors differ."""
    if one.keys() != other.keys():
        return ", ".join(sorted(one.keys() ^ other.keys()))
    return next((key for key in one if not torch.equal(one[key], other[key])), None)
