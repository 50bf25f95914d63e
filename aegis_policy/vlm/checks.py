"""What is asked of a VLM before it is trained; `aegis-doctor` asks the same.

`check_files` is what `VLMBackbone.from_pretrained` enforces, so that every command says it. Weights are not read here.
"""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.loading import VLMFiles, load_model, read_files, resolve
from aegis_policy.vlm.prompts import NO_LABEL, Picture, Prompts, beginning

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone

_SENTENCE = "Where is the red cube, and what lies beside it?"
_ANSWER = "on the table"


def check_vlm(name: str, flag: str = "--policy.vlm", texts: Collection[str] = ()) -> Iterator[Finding]:
    """See whether a VLM can be trained, as far as its files say without the values of its weights.

    Args:
        name: a directory, a hub id (whose weights are not fetched for this), or `embedded`.
        flag: how findings call what named it.
        texts: instructions that it is to be trained on.
    """
    named = f"{flag}={name}"
    try:
        files = read_files(resolve(name, named), named)
        findings = [*check_files(files), *check_texts(replace(files.prompts, name=name), texts)]
        if Path(files.source).is_dir() and not any(each.status == "error" for each in findings):
            findings += load_model(files, device_map="meta")[1]
    except AegisError as error:
        yield Finding("error", str(error))
        return
    yield from findings
    if not findings:
        yield Finding(
            "ok", f"{named} is a `{files.config.model_type}` model, whole, which reads pictures and texts"
        )


def check_files(files: VLMFiles) -> Iterator[Finding]:
    """See whether a model's processor makes, of pictures and texts, what the model reads."""
    yield from files.findings
    fault = (_template_fault(files) if files.family.chat else None) or _inputs_fault(files)
    if fault is not None:
        yield Finding("error", f"{files.named} {fault[0]}", fault[1])


def check_texts(prompts: Prompts, texts: Collection[str]) -> Iterator[Finding]:
    """See whether a model can read instructions, and tells their letters apart."""
    refused = {text: reason for text in texts if (reason := prompts.refuses(text)) is not None}
    for text, reason in refused.items():
        others = f" (and {len(refused) - 1} more of {len(texts)} instructions)" if len(refused) > 1 else ""
        yield Finding("error", f"The instruction {beginning(text)}{others} {reason}")
        break
    if unknown := [text for text in texts if text not in refused and prompts.has_unknown(text)]:
        yield Finding(
            "warning",
            f"{len(unknown)} of {len(texts)} instructions hold letters that {prompts.name} does not know and takes for "
            f"one and the same, such as {beginning(unknown[0])}",
            "say it in letters that the VLM was trained on, or choose another VLM",
        )


def check_saving(vlm: "VLMBackbone") -> Iterator[Finding]:
    """See that what a checkpoint keeps of a VLM, weights apart, can be written, and read again as the same model.

    Written is a temporary folder; no weights are made.
    """
    with TemporaryDirectory(prefix="aegis-vlm-") as folder:
        try:
            vlm.save_architecture(folder)
            files = read_files(folder, vlm.name)
            with torch.device("meta"):
                shapes = _shapes(AutoModelForImageTextToText.from_config(files.config))
            changed = _difference(_sample(vlm.prompts), _sample(files.prompts))
        except Exception as error:  # whatever a model's own configuration or processor does
            yield Finding(
                "error",
                f"{vlm.name} cannot be saved in a checkpoint ({type(error).__name__}: {one_line(error)})",
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


def _template_fault(files: VLMFiles) -> tuple[str, str] | None:
    """What is wrong with a chat template, and the mend."""
    mend = "take chat_template.jinja from where the model came"
    if not files.processor.chat_template:
        return "has no chat template, in which its kind of model is spoken to", mend
    try:
        one, two = (files.prompts.prompt(_SENTENCE, images) for images in (1, 2))
    except Exception as error:  # whatever a template does
        return f"has a chat template that fails ({one_line(error)})", mend
    if _SENTENCE not in one:
        return "has a chat template that leaves out what it is told", mend
    if one == two:
        return "has a chat template that leaves out pictures", mend
    return None


def _inputs_fault(files: VLMFiles) -> tuple[str, str] | None:
    """What is wrong with the inputs that the processor makes, and the mend."""
    mend = (
        "its processor files belong to another model or are not whole, so take them from where the model came"
    )
    picture, views = _picture(), _views()
    try:
        asked = files.prompts.of_questions([picture], [_SENTENCE])
        answered = files.prompts.of_answers([picture], [_SENTENCE], [_ANSWER])
        one, two = (files.prompts.of_cameras(cameras, [_SENTENCE]) for cameras in (views[:1], views))
    except Exception as error:  # whatever a processor does
        return f"has a processor that cannot read a picture and a text ({one_line(error)})", mend
    image_token = files.config.image_token_id
    counts = [int((inputs["input_ids"] == image_token).sum()) for inputs in (asked, one, two)]
    if not all(counts):
        return f"has a processor that makes no image tokens ({image_token}) of a picture", mend
    words = asked["input_ids"][asked["input_ids"] != image_token]
    vocabulary = files.config.get_text_config().vocab_size
    if int(words.max()) >= vocabulary:
        return f"has a tokenizer with the token {int(words.max())}, and a vocabulary of {vocabulary}", mend
    if int((answered["labels"] != NO_LABEL).sum()) < 2:  # a word and the end
        return "has a chat template or tokenizer that loses answers", mend
    return None


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """The shapes of a model's own weights by name; adapters are left out."""
    return {
        name.replace(".base_layer", ""): x.shape
        for name, x in model.named_parameters()
        if ".lora_" not in name
    }


def _sample(prompts: Prompts) -> dict[str, Tensor]:
    """Model inputs of a question, and of what a robot with two cameras is told."""
    asked, told = prompts.of_questions([_picture()], [_SENTENCE]), prompts.of_cameras(_views(), [_SENTENCE])
    return {**{f"{key} of a question": x for key, x in asked.items()}, **told}


def _views() -> list[Tensor]:
    """Of two cameras, (1, 3, 40, 56)."""
    return [torch.linspace(0, 1, 3 * 40 * 56).view(1, 3, 40, 56)] * 2


def _picture() -> Picture:
    return (_views()[0][0] * 255).byte().permute(1, 2, 0).numpy()


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """The first key whose tensors differ."""
    if one.keys() != other.keys():
        return ", ".join(sorted(one.keys() ^ other.keys()))
    return next((key for key in one if not torch.equal(one[key], other[key])), None)
