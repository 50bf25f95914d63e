"""What is known of each VLM family: where its parts are, how it is spoken to, what its inputs need.

A family that is missing here can come from any installed package: an entry point of the group
`aegis_policy.vlm_families`, named like the `model_type` of the model's config.json, that is a `Family` (docs/vlms.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

from aegis_policy.support.errors import AegisError

SHORT_ANSWER = "{}\nAnswer the question using a single word or phrase."
"""How LLaVA-1.5 (arXiv 2310.03744), and lmms-eval after it, asks chat models the questions of VQA benchmarks."""


class WholePrompt(str):
    """A question that says itself how it is answered, as multiple-choice benchmarks put theirs, in lines that count.

    A chat model is asked it as it stands; a model that knows one form of question alone, in that form and in one line.
    """


@dataclass(frozen=True)
class Family:
    """One VLM family.

    Attributes:
        decoder_layers: dotted path from the model to the list of the language model's layers.
        vision_tower: the same of its vision tower.
        projector: of what maps the tower's features to the language model's inputs.
        question: how a question of a VQA benchmark is put, `{}` being its text.
        chat: the prompt is a user's turn in the processor's chat template; otherwise one `<image>` for each image,
            then the text.
        first_position: position of the first token, padding not counted; None where positions depend on the images
            and the model works them out.
        causal_type: in `token_type_ids`, of tokens that are read behind the prompt.
        camera_options: `images_kwargs` of the processor for the cameras of a policy, which cannot afford as many
            tokens an image as a question can.
    """

    decoder_layers: str
    vision_tower: str
    projector: str
    question: str = SHORT_ANSWER
    chat: bool = True
    first_position: int | None = 0
    causal_type: int = 0
    camera_options: Mapping[str, Any] = field(default_factory=dict)


_LANGUAGE_MODEL = "model.language_model.layers"
_PALIGEMMA = Family(
    _LANGUAGE_MODEL,
    "model.vision_tower",
    "model.multi_modal_projector",
    question="answer en {}",
    chat=False,
    first_position=1,
    causal_type=1,
)
_IDEFICS = Family(
    "model.text_model.layers",
    "model.vision_model",
    "model.connector",
    camera_options={"do_image_splitting": False},
)
_QWEN = Family(_LANGUAGE_MODEL, "model.visual", "model.visual.merger", first_position=None)

FAMILIES: dict[str, Family] = {
    "paligemma": _PALIGEMMA,  # and PaliGemma 2, which differs in its text config
    "smolvlm": _IDEFICS,  # SmolVLM2
    "idefics3": _IDEFICS,  # SmolVLM
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "gemma3": Family(_LANGUAGE_MODEL, "model.vision_tower", "model.multi_modal_projector"),
    "llava_onevision": Family(_LANGUAGE_MODEL, "model.vision_tower", "model.multi_modal_projector"),
}
"""transformers `model_type` -> family."""
ENTRY_POINTS = "aegis_policy.vlm_families"


def family_of(model_type: str) -> Family | None:
    """The family of a transformers `model_type`, of this package or of an entry point; None if nobody knows it.

    Raises:
        AegisError: the entry point cannot be imported, or is no `Family`.
    """
    if model_type in FAMILIES:
        return FAMILIES[model_type]
    for entry in entry_points(group=ENTRY_POINTS, name=model_type):
        try:
            family = entry.load()
        except Exception as error:  # whatever somebody's module does when it is imported
            raise AegisError(
                f"The entry point {entry.name} = {entry.value} of {ENTRY_POINTS} cannot be loaded ({error}): mend or "
                "uninstall the package that brings it."
            ) from error
        if not isinstance(family, Family):
            raise AegisError(
                f"The entry point {entry.name} = {entry.value} of {ENTRY_POINTS} is no Family of "
                "aegis_policy.vlm.families: name one."
            )
        return family
    return None
