"""What is asked of a VLM before it is trained; `aegis-doctor` asks the same."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from torch import Tensor

from aegis_policy.pretrained import resolve
from aegis_policy.support.errors import AegisError, one_line, shortened
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.early_end import require_depth
from aegis_policy.vlm.loading import VLMFiles, read_files
from aegis_policy.vlm.processor_checks import SENTENCE, check_files, picture, views
from aegis_policy.vlm.prompts import Prompts
from aegis_policy.vlm.weights import load_model

_SMALL = 2**31
"""Bytes of weights up to which `check_vlm` reads them too."""


def check_vlm(
    name: str, flag: str = "--policy.vlm", texts: Collection[str] = (), depth: int | None = None
) -> Iterator[Finding]:
    """See whether a VLM can be trained, as far as its files say; small ones are loaded, and read a picture.

    Args:
        name: a directory, a hub id (whose weights are not fetched for this), or `embedded`.
        flag: how findings call what named it.
        texts: instructions that it is to be trained on.
        depth: after how many decoder layers a policy is to end.
    """
    named = f"{flag}={name}"
    try:
        files = read_files(resolve(name, named), named)
        require_depth(depth, files.config.get_text_config().num_hidden_layers, named)
        findings = [*check_files(files), *check_texts(replace(files.prompts, name=name), texts)]
        if Path(files.source).is_dir() and not any(each.status == "error" for each in findings):
            findings += _check_weights(files, name)
    except AegisError as error:
        yield Finding("error", str(error))
        return
    yield from findings
    if not findings:
        yield Finding(
            "ok", f"{named} is a `{files.config.model_type}` model, whole, which reads pictures and texts"
        )


def _check_weights(files: VLMFiles, name: str) -> Iterator[Finding]:
    size = sum(each.stat().st_size for each in Path(files.source).glob("*.safetensors"))
    if size > _SMALL:
        yield from load_model(files, device_map="meta")[1]
        return
    model, findings = load_model(files)
    yield from findings
    yield from check_reading(VLMBackbone(model, files.processor, name))


def check_reading(vlm: VLMBackbone) -> Iterator[Finding]:
    """See that a model's weights are finite and fit what its processor makes: it reads one picture, and two cameras."""
    for part, x in vlm.model.named_parameters():
        if x.numel() and not all(torch.isfinite(each) for each in x.detach().aminmax()):
            yield Finding(
                "error",
                f"{vlm.name} has weights that are NaN or infinite ({part})",
                "download the model again or name another directory",
            )
            return
    was_training = vlm.model.training
    vlm.model.eval()
    try:
        vlm.answer([picture()], [SENTENCE], max_new_tokens=1)
        with torch.no_grad():
            vlm.encode(vlm.prepare([each.to(vlm.device) for each in views()], [SENTENCE]))
    except AegisError as error:
        yield Finding("error", str(error))
    finally:
        vlm.model.train(was_training)


def check_texts(prompts: Prompts, texts: Collection[str]) -> Iterator[Finding]:
    """See whether a model can read instructions, and tells their letters apart."""
    refused = {text: reason for text in texts if (reason := prompts.refuses(text)) is not None}
    for text, reason in refused.items():
        others = f" (and {len(refused) - 1} more of {len(texts)} instructions)" if len(refused) > 1 else ""
        yield Finding("error", f"The instruction {shortened(text)}{others} {reason}")
        break
    if unknown := [text for text in texts if text not in refused and prompts.has_unknown(text)]:
        yield Finding(
            "warning",
            f"{len(unknown)} of {len(texts)} instructions hold letters that {prompts.name} does not know and takes for "
            f"one and the same, such as {shortened(unknown[0])}",
            "say it in letters that the VLM was trained on, or choose another VLM",
        )


def check_saving(vlm: VLMBackbone) -> Iterator[Finding]:
    """See that what a checkpoint keeps of a VLM, weights apart, can be written, and read again as the same model.

    Written is a temporary folder; no weights are made.
    """
    with TemporaryDirectory(prefix="aegis-vlm-") as folder:
        try:
            vlm.save_architecture(folder)
            files = read_files(folder, vlm.name)
            with torch.device("meta"):
                shapes = _shapes(transformers.AutoModelForImageTextToText.from_config(files.config))
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


def _shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    """The shapes of a model's own weights by name; adapters are left out."""
    return {
        name.replace(".base_layer", ""): x.shape
        for name, x in model.named_parameters()
        if ".lora_" not in name
    }


def _sample(prompts: Prompts) -> dict[str, Tensor]:
    """Model inputs of a question, and of what a robot with two cameras is told."""
    asked, told = prompts.of_questions([picture()], [SENTENCE]), prompts.of_cameras(views(), [SENTENCE])
    return {**{f"{key} of a question": x for key, x in asked.items()}, **told}


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> str | None:
    """The first key whose tensors differ."""
    if one.keys() != other.keys():
        return ", ".join(sorted(one.keys() ^ other.keys()))
    return next((key for key in one if not torch.equal(one[key], other[key])), None)
