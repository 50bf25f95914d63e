"""Packed batches of questions about rendered scenes, fresh in every epoch, for `aegis-pretrain`."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from aegis_eval.pretraining.packing import Block, PackedBatch, pack
from aegis_eval.pretraining.vision_warmup import patch_labels
from aegis_eval.questions.images import SceneImage
from aegis_eval.questions.store import SceneImages
from aegis_eval.questions.templated import TYPES, ask, detection_caption, scene_caption
from aegis_policy.vlm.backbone import VLMBackbone

STANDARD_EVERY = 4
STANDARD_TAIL = 0.06
"""One step of so many, and this last part of the schedule, ask one question an image: the model's own path."""
_TRAINED_TYPES = (*TYPES, "where", "relation")
"""Relations are learned last: they come up twice as often."""


class QuestionBatches:
    """The batches of one rank, each a function of (seed, step, rank) alone: a resumed run sees what it would have.

    Args:
        scenes: what is asked about.
        vlm: whose tokenizer, processor and prompt format are used.
        steps: length of the schedule; its last part keeps to the model's own prompt path.
        batch_size: images a step over all ranks.
        questions: questions packed behind an image, besides its detection caption.
    """

    def __init__(
        self,
        scenes: SceneImages,
        vlm: VLMBackbone,
        *,
        steps: int,
        batch_size: int,
        questions: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.scenes, self.vlm = scenes, vlm
        self.steps, self.batch_size, self.questions = steps, batch_size, questions
        self.seed, self.rank, self.world = seed, rank, world
        self._encode = lru_cache(maxsize=200_000)(self._tokenize)

    def at(self, step: int) -> tuple[Tensor, PackedBatch, bool]:
        """Pixel values (B, 3, H, W) and packed blocks of a step, and whether it takes the model's own path."""
        standard = step % STANDARD_EVERY == STANDARD_EVERY - 1 or step >= (1 - STANDARD_TAIL) * self.steps
        rng = np.random.default_rng([self.seed, step, self.rank])
        scenes = [self.scenes[int(index)] for index in self._indices(step)]
        samples = [self._blocks(scene, rng, 1 if standard else self.questions) for scene in scenes]
        processor = self.vlm.processor
        pad = processor.tokenizer.pad_token_id
        packed = pack(samples, processor.image_seq_length, processor.image_token_id, pad)
        return self._pixel_values(scenes), packed, standard

    def patches_at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a vision warm-up step: pixel values and what every patch shows, (B, P, 3)."""
        scenes = [self.scenes[int(index)] for index in self._indices(step)]
        return self._pixel_values(scenes), patch_labels(
            scenes, math.isqrt(self.vlm.processor.image_seq_length)
        )

    def _pixel_values(self, scenes: Sequence[SceneImage]) -> Tensor:
        images = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        return self.vlm.processor.image_processor(images, return_tensors="pt")["pixel_values"]

    def _indices(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, len(self.scenes) // self.batch_size)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.scenes))
        start = position * self.batch_size
        return order[start : start + self.batch_size][self.rank :: self.world]

    def _blocks(self, scene: SceneImage, rng: np.random.Generator, questions: int) -> list[Block]:
        asked = ask(scene.scene, rng, types=_TRAINED_TYPES, n=questions, place=scene.place)
        pairs = [(question.text, question.answer) for question in asked]
        if questions > 1:
            pairs.append(detection_caption(scene.scene, scene.place))
            if rng.uniform() < 0.3:
                pairs.append(scene_caption(scene.scene, rng, scene.place))
        return [self.block(question, answer) for question, answer in pairs]

    def block(self, question: str, answer: str) -> Block:
        """Tokens of one question and its answer, as the model's processor would lay them out after the image."""
        tokenizer = self.vlm.processor.tokenizer
        prompt = f"{tokenizer.bos_token}{self.vlm.family.question.format(question)}\n"
        return Block(self._encode(prompt), self._encode(answer + tokenizer.eos_token))

    def _tokenize(self, text: str) -> list[int]:
        return self.vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
