"""What a VLM is told: pictures and texts as the model inputs of its own processor, in the words of its family.

Instructions of a policy and questions of a benchmark take the same way, so that the two skills meet in one model.

Shapes: B batch, C cameras, N questions, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from aegis_policy.vlm.families import Family

Picture = np.ndarray | Image.Image
"""(H, W, 3) uint8."""
NO_LABEL = -100
"""What labels hold where there is no answer."""


@dataclass(frozen=True)
class Prompts:
    """Makes model inputs with the processor of a model of this family.

    They are `input_ids` and `attention_mask` (N, T), pixels, and what else its processor gives; on the CPU, but for
    pictures that came from elsewhere. A processor's own errors pass through.
    """

    processor: Any
    family: Family

    def of_cameras(self, images: Sequence[Tensor], texts: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of C camera images (B, 3, H, W) in [0, 1] and B instructions; padded on the right."""
        # As integers, like the pictures of questions: resizing floats overshoots where integers are clipped.
        views = [(image * 255).round().clamp(0, 255).to(torch.uint8) for image in images]
        samples = [list(cameras) for cameras in zip(*views, strict=True)]
        prompts = [self._prompt(_one_line(text), len(images)) for text in texts]
        return self._process(samples, prompts, "right", images_kwargs=dict(self.family.camera_options))

    def of_questions(self, images: Sequence[Picture], questions: Sequence[str]) -> dict[str, Tensor]:
        """Inputs of N questions, each about one image; padded on the left, as `generate` wants them."""
        return self._process(_one_a_sample(images), self._asked(questions), "left")

    def of_answers(
        self, images: Sequence[Picture], questions: Sequence[str], answers: Sequence[str]
    ) -> dict[str, Tensor]:
        """Inputs of N questions with answers, padded on the left; `labels` (N, T) hold the answers' tokens alone."""
        pictures, prompts = _one_a_sample(images), self._asked(questions)
        if not self.family.chat:
            return self._process(pictures, prompts, "left", suffix=list(answers))
        whole = [
            self._prompt(self._question(question), 1, answer)
            for question, answer in zip(questions, answers, strict=True)
        ]
        inputs = self._process(pictures, whole, "left")
        labels_NT = torch.full_like(inputs["input_ids"], NO_LABEL)
        for row, (before, after) in enumerate(zip(prompts, whole, strict=True)):
            count = self._words(after) - self._words(before)
            labels_NT[row, -count:] = inputs["input_ids"][row, -count:]
        return {**inputs, "labels": labels_NT}

    def _question(self, text: str) -> str:
        return self.family.question.format(_one_line(text))

    def _asked(self, questions: Sequence[str]) -> list[str]:
        return [self._prompt(self._question(question), 1) for question in questions]

    def _prompt(self, text: str, images: int, answer: str | None = None) -> str:
        """What the processor is given for so many images and a text, with the model's answer if there is one."""
        if not self.family.chat:
            return "<image>" * images + text
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

    def _words(self, text: str) -> int:
        """How many tokens a text has before its images are spread over many."""
        return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _process(
        self, samples: list[list[Any]], prompts: list[str], padding_side: str, **options: Any
    ) -> dict[str, Tensor]:
        if self.family.chat:
            options["add_special_tokens"] = False  # the template wrote them
        tokenizer = self.processor.tokenizer
        its_own, tokenizer.padding_side = tokenizer.padding_side, padding_side
        try:
            inputs = self.processor(
                images=samples, text=prompts, padding=True, return_tensors="pt", **options
            )
        finally:
            tokenizer.padding_side = its_own
        if not options.get("suffix"):
            inputs.pop("labels", None)
        return dict(inputs)


def _one_a_sample(images: Sequence[Picture]) -> list[list[Image.Image]]:
    return [[Image.fromarray(image) if isinstance(image, np.ndarray) else image] for image in images]


def _one_line(text: str) -> str:
    return " ".join(text.split())
