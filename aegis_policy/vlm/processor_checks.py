"""Whether a model's processor makes, of pictures and texts, what the model reads.

Asked of every VLM before its weights are loaded; what is asked of a whole VLM is in `checks`.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from aegis_policy.support.errors import one_line
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.loading import VLMFiles
from aegis_policy.vlm.prompts import NO_LABEL, Picture

SENTENCE = "Where is the red cube, and what lies beside it?"
_ANSWER = "on the table"
OTHER_PROCESSOR = (
    "its processor files belong to another model or are not whole, so take them from where the model came"
)
"""The mend."""


def check_files(files: VLMFiles) -> Iterator[Finding]:
    """See whether a model's processor makes, of pictures and texts, what the model reads."""
    yield from files.findings
    fault = (_template_fault(files) if files.family.chat else None) or _inputs_fault(files)
    if fault is not None:
        yield Finding("error", f"{files.named} {fault[0]}", fault[1])


def views() -> list[Tensor]:
    """What two cameras might see, (1, 3, 40, 56) each."""
    return [torch.linspace(0, 1, 3 * 40 * 56).view(1, 3, 40, 56)] * 2


def picture() -> Picture:
    """The first view, as a picture that a question is about."""
    return (views()[0][0] * 255).byte().permute(1, 2, 0).numpy()


def _template_fault(files: VLMFiles) -> tuple[str, str] | None:
    """What is wrong with a chat template, and the mend."""
    mend = "take chat_template.jinja from where the model came"
    if not files.processor.chat_template:
        return "has no chat template, in which its kind of model is spoken to", mend
    try:
        one, two = (files.prompts.prompt(SENTENCE, images) for images in (1, 2))
    except Exception as error:  # whatever a template does
        return f"has a chat template that fails ({one_line(error)})", mend
    if SENTENCE not in one:
        return "has a chat template that leaves out what it is told", mend
    if one == two:
        return "has a chat template that leaves out pictures", mend
    return None


def _inputs_fault(files: VLMFiles) -> tuple[str, str] | None:
    """What is wrong with the inputs that the processor makes, and the mend."""
    mend, cameras = OTHER_PROCESSOR, views()
    try:
        asked = files.prompts.of_questions([picture()], [SENTENCE])
        answered = files.prompts.of_answers([picture()], [SENTENCE], [_ANSWER])
        one, two = (files.prompts.of_cameras(each, [SENTENCE]) for each in (cameras[:1], cameras))
        image_token, vocabulary = files.config.image_token_id, files.config.get_text_config().vocab_size
    except Exception as error:  # whatever a processor does, or a configuration lacks
        return f"has a processor that cannot read a picture and a text ({one_line(error)})", mend
    counts = [int((inputs["input_ids"] == image_token).sum()) for inputs in (asked, one, two)]
    if not all(counts):
        return f"has a processor that makes no image tokens ({image_token}) of a picture", mend
    words = asked["input_ids"][asked["input_ids"] != image_token]
    if int(words.max()) >= vocabulary:
        return f"has a tokenizer with the token {int(words.max())}, and a vocabulary of {vocabulary}", mend
    if int((answered["labels"] != NO_LABEL).sum()) < 2:  # a word and the end
        return "has a chat template or tokenizer that loses answers", mend
    return None
