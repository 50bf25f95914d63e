"""What a VLM is told: pictures and texts as the model inputs of its own processor, in the words of its family.

Instructions of a policy and questions of a benchmark take the same way, so that the two skills meet in one model.

Shapes: B batch, C cameras, N questions, T tokens.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from aegis_policy.support.errors import AegisError, one_line, shortened
from aegis_policy.vlm.families import Family, WholePrompt
from aegis_policy.vlm.plain_text import PlainText

Picture = np.ndarray | Image.Image
"""(H, W, 3) uint8; a picture may have another mode, such as grey or transparent, and is read in colour."""
Pictures = Picture | Sequence[Picture] | None
"""What a question is about: a picture, several in their order, or none."""
_IMAGE = "<image>"
"""An image's place in a prompt that is no chat."""
_BLANK = (32, 32)
NO_LABEL = -100
"""What labels hold where there is no answer."""
_ONE_AT_A_TIME = Lock()
"""Held by the thread that tokenizes: a fast tokenizer is set to pad, or not, by each call."""
_LONGEST_TEXT = 1024
"""Tokens of running text that are read at most: a distribution over the vocabulary is made at each of them."""
_LONGEST = 100
"""Times a picture may be longer than it is wide. Qwen's processor refuses 200."""


@dataclass(frozen=True)
class Prompts:
    """Makes model inputs with the processor of a model of this family.

    They are `input_ids` and `attention_mask` (N, T), pixels if there are pictures, and what else its processor gives;
    on the CPU, but for pictures that came from elsewhere. Whatever special tokens a text quotes are read as ordinary
    words. The questions of a batch are all about pictures, or none of them is.

    Attributes:
        processor: the model's own.
        family: of the model.
        name: of the model, for errors.
        longest: tokens that the model can read at once, pictures and all; None where nobody knows.
    """

    processor: Any
    family: Family
    name: str
    longest: int | None

    def of_cameras(self, images: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of C camera images (B, 3, H, W) in [0, 1] and B instructions; padded on the right."""
        # As integers, like the pictures of questions: resizing floats overshoots where integers are clipped.
        views = [(image * 255).round().clamp(0, 255).to(torch.uint8) for image in images]
        samples = [list(cameras) for cameras in zip(*views, strict=True)]
        prompts = [self.prompt(self._text(_one_line(text)), len(images)) for text in texts]
        return self._process(samples, prompts, "right", images_kwargs=dict(self.family.camera_options))

    def of_questions(self, images: Sequence[Pictures], questions: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of N questions, each behind its pictures; padded on the left, as `generate` wants them."""
        pictures = self._of_each(images)
        return self._process(pictures, self._asked(pictures, questions), "left")

    def of_answers(
        self, images: Sequence[Pictures], questions: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Inputs of N questions with answers, padded on the left; `labels` (N, T) hold the answers' tokens alone."""
        pictures = self._of_each(images)
        prompts = self._asked(pictures, questions)
        answers = [self._text(answer) for answer in answers]
        if not self.family.chat:
            return self._process(pictures, prompts, "left", suffix=answers)
        whole = self._asked(pictures, questions, answers)
        inputs = self._process(pictures, whole, "left")
        labels_NT = torch.full_like(inputs["input_ids"], NO_LABEL)
        for row, (before, after) in enumerate(zip(prompts, whole, strict=True)):
            count = len(self._words(after)) - len(self._words(before))
            labels_NT[row, -count:] = inputs["input_ids"][row, -count:]
        return {**inputs, "labels": labels_NT}

    def of_text(self, text: str) -> dict[str, Tensor]:
        """Inputs of running text (1, T), in no turn and about no picture, every token seeing those before it alone.

        Of more tokens than the model reads, or than 1,024, the first are taken.

        Raises:
            AegisError: it refuses the text.
        """
        if (reason := self._unreadable(text)) is not None:
            raise AegisError(f"The text {shortened(text)} {reason}.")
        inputs = self._inputs([[]], [self._plain(text)], "right")
        longest = min(_LONGEST_TEXT, self.longest or _LONGEST_TEXT)
        cut = {key: x[:, :longest] for key, x in inputs.items() if x.shape == inputs["input_ids"].shape}
        if "token_type_ids" in cut:
            cut["token_type_ids"] = torch.full_like(cut["token_type_ids"], self.family.causal_type)
        return cut

    def refuses(self, text: str) -> str | None:
        """Why the model cannot read a text, as the end of a sentence that begins with it; None if it can."""
        if (reason := self._unreadable(_one_line(text))) is not None:
            return reason
        tokens = self._words(self._plain(_one_line(text)))
        if self.longest is not None and len(tokens) > self.longest:
            return f"makes {len(tokens)} tokens, and {self.name} reads {self.longest} at most: shorten it"
        return None

    def _unreadable(self, text: str) -> str | None:
        """The same of a text that may be as long as it likes."""
        try:
            text.encode()
        except UnicodeEncodeError:
            return "holds half a letter (a lone surrogate of UTF-16): write it anew"
        if (token := self._plain.special_in(self._words(self._plain(text)))) is not None:
            return f"holds what {self.name} takes for its special token {token}: write it otherwise"
        return None

    def has_unknown(self, text: str) -> bool:
        """Whether a text holds letters that the tokenizer has no word for."""
        unknown = self.processor.tokenizer.unk_token_id
        return unknown is not None and unknown in self._words(self._plain(_one_line(text)))

    @cached_property
    def _plain(self) -> PlainText:
        return PlainText(self.processor)

    def _text(self, text: str) -> str:
        """A text in the words that the model reads.

        Raises:
            AegisError: it refuses it.
        """
        if (reason := self.refuses(text)) is not None:
            raise AegisError(f"The text {shortened(text)} {reason}.")
        return self._plain(text)

    def _asked(
        self, pictures: list[list[Any]], questions: Sequence[str], answers: Sequence[str] = ()
    ) -> list[str]:
        """The prompts of questions, with their answers if there are some."""
        return [
            self.prompt(self._put(question, pictured=bool(own)), len(own), answer)
            for own, question, answer in zip(
                pictures, questions, answers or repeat(None, len(questions)), strict=True
            )
        ]

    def _put(self, question: str, *, pictured: bool) -> str:
        """A question in the words of the family."""
        if self.family.chat and isinstance(question, WholePrompt):
            return self._text(question)
        # A chat model is asked for a word or phrase as VQA benchmarks have it; without a picture it is just asked.
        put = self.family.question if pictured or not self.family.chat else "{}"
        return put.format(self._text(_one_line(question)))

    def prompt(self, text: str, images: int, answer: str | None = None) -> str:
        """What the processor is given for so many images and a text, with the model's answer if there is one."""
        if not self.family.chat:
            return _IMAGE * images + text
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
        turns = [{"role": "user", "content": content}]
        quiet = {"processor_kwargs": {"padding": False}}  # without any, SmolVLM's processor warns of its own
        prompt = self.processor.apply_chat_template(turns, add_generation_prompt=True, **quiet)
        if answer is None:
            return prompt
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        answered = self.processor.apply_chat_template(turns, **quiet).rstrip()
        # A template may write its own answers otherwise than it asks for them; what `generate` goes on from counts.
        return (
            answered if answered.startswith(prompt) else prompt + answer + self.processor.tokenizer.eos_token
        )

    def _words(self, text: str) -> list[int]:
        """The tokens that a text has before its images are spread over many."""
        with _ONE_AT_A_TIME:
            return self.processor.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _process(
        self, samples: list[list[Any]], prompts: list[str], padding_side: str, **options: Any
    ) -> dict[str, Tensor]:
        if self.family.chat:
            options["add_special_tokens"] = False  # the template wrote them
        inputs = self._inputs(samples, prompts, padding_side, **options)
        self._require_room(inputs["attention_mask"], prompts)
        return inputs

    def _inputs(
        self, samples: list[list[Any]], prompts: list[str], padding_side: str, **options: Any
    ) -> dict[str, Tensor]:
        """What the processor makes of prompts, each with its pictures or none."""
        pictures: list[list[Any]] | None = samples if any(samples) else None
        blank = pictures is None and not self.family.chat
        if blank:  # the processor reads no text without a picture: it gets one, of which nothing is kept
            pictures = [[Image.new("RGB", _BLANK)] for _ in prompts]
            prompts = [_IMAGE + prompt for prompt in prompts]
        with _ONE_AT_A_TIME, _padding_on(padding_side, self.processor.tokenizer):
            try:
                inputs = dict(
                    self.processor(
                        images=pictures, text=prompts, padding=True, return_tensors="pt", **options
                    )
                )
            except Exception as error:  # whatever a processor does
                of = f"pictures of {_sizes(samples)} pixels with the prompt" if any(samples) else "the prompt"
                raise AegisError(
                    f"{self.name} cannot read {of} {shortened(prompts[0])} ({one_line(error)}): give others."
                ) from error
        if not options.get("suffix"):
            inputs.pop("labels", None)
        return self._without_images(inputs) if blank else inputs

    def _without_images(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same inputs (N, T) less their images, which have as many tokens in each of them."""
        kept_NT = inputs["input_ids"] != self.processor.tokenizer.convert_tokens_to_ids(_IMAGE)
        return {key: x[kept_NT].view(len(x), -1) for key, x in inputs.items() if x.shape == kept_NT.shape}

    def _of_each(self, images: Sequence[Pictures]) -> list[list[Image.Image]]:
        """The pictures of each sample.

        Raises:
            AegisError: some have one and others do not.
        """
        pictures = [[_picture(each) for each in _several(shown)] for shown in images]
        if any(pictures) and not all(pictures):
            raise AegisError(
                f"{self.name} cannot be asked about pictures and without one in the same batch: ask in two."
            )
        return pictures

    def _require_room(self, mask_NT: Tensor, prompts: list[str]) -> None:
        tokens_N = mask_NT.sum(1)
        if self.longest is not None and int(tokens_N.max()) > self.longest:
            raise AegisError(
                f"The prompt {shortened(prompts[int(tokens_N.argmax())])} makes {int(tokens_N.max())} tokens with its "
                f"pictures, and {self.name} reads {self.longest} at most: shorten it, or give fewer pictures."
            )


@contextmanager
def _padding_on(side: str, tokenizer: Any) -> Iterator[None]:
    its_own, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        yield
    finally:
        tokenizer.padding_side = its_own


def _several(shown: Pictures) -> Sequence[Picture]:
    if shown is None:
        return ()
    return (shown,) if isinstance(shown, Picture) else shown


def _picture(image: Picture) -> Image.Image:
    """A picture in colour, with a rim where it is so long that processors refuse it."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image = image.convert("RGB")
    width, height = image.size
    sides = max(width, math.ceil(height / _LONGEST)), max(height, math.ceil(width / _LONGEST))
    return image if sides == image.size else ImageOps.pad(image, sides)


def _sizes(samples: list[list[Any]]) -> str:
    """How many pixels the pictures of some samples are high and wide, without repetition."""
    found = {
        image.shape[-2:] if isinstance(image, Tensor) else image.size[::-1]
        for sample in samples
        for image in sample
    }
    return ", ".join(f"{height} x {width}" for height, width in sorted(found)[:5])


def _one_line(text: str) -> str:
    return " ".join(text.split())
