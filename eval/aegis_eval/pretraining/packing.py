"""Several question-answer blocks behind one image, in one sequence.

A PaliGemma sample is image tokens, a question that everything in the prefix may see, and an answer that is read
causally. Encoding the image again for every question wastes most of the arithmetic, so training packs K blocks
behind one image: each block sees the image and itself, never another block, and starts at the position it would
have alone. With one block a sequence the mask is the model's own (image tokens see the question too); with more,
image tokens see only the image, which is the one difference to the standard path.

Shapes: B images, T tokens of the longest packed sequence.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IMAGE_BLOCK = 0
PADDING_BLOCK = -1


@dataclass(frozen=True)
class Block:
    """Token ids of one question (`prompt`, from <bos> to the newline) and of its `answer` (to <eos>)."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of an image followed by blocks.

    `input_ids`, `position_ids` (B, T) as the model takes them; `blocks` (B, T) holds 0 for image tokens, 1.. for the
    blocks and -1 for padding; `answers` (B, T) marks answer tokens and `weights` (B, T) says how much each counts:
    those of one answer sum to 1, however long it is.
    """

    input_ids: Tensor
    position_ids: Tensor
    blocks: Tensor
    answers: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on another device."""
        return PackedBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def attention_mask(self, image_sees_prompt: bool) -> Tensor:
        """(B, 1, T, T) bool, True where the query (row) may look at the key (column)."""
        query, key = self.blocks.unsqueeze(2), self.blocks.unsqueeze(1)
        answer_query, answer_key = self.answers.unsqueeze(2), self.answers.unsqueeze(1)
        order = torch.arange(self.blocks.shape[1], device=self.blocks.device)
        causal = order.unsqueeze(1) >= order.unsqueeze(0)
        same = (query == key) & (~answer_key | (answer_query & causal))
        allowed = (key == IMAGE_BLOCK) | same
        if image_sees_prompt:
            allowed = allowed | ((query == IMAGE_BLOCK) & ~answer_key)
        allowed = allowed & (key != PADDING_BLOCK)
        diagonal = torch.eye(len(order), dtype=torch.bool, device=self.blocks.device)
        return (allowed | diagonal).unsqueeze(1)

    def targets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Positions that predict an answer token, as a (B, T) mask, those tokens, (N,), and their weights, (N,)."""
        predicts = torch.zeros_like(self.answers)
        predicts[:, :-1] = self.answers[:, 1:]
        wanted = self.answers[:, 1:]
        return predicts, self.input_ids[:, 1:][wanted], self.weights[:, 1:][wanted]


def pack(
    samples: Sequence[Sequence[Block]], image_tokens: int, image_token_id: int, pad_token_id: int
) -> PackedBatch:
    """Pack the blocks of each of B images behind its `image_tokens` placeholders, padded on the right."""
    ids, positions, blocks, answers, weights = [], [], [], [], []
    for sample in samples:
        row_ids = [image_token_id] * image_tokens
        row_positions = list(range(1, image_tokens + 1))
        row_blocks = [IMAGE_BLOCK] * image_tokens
        row_answers = [False] * image_tokens
        row_weights = [0.0] * image_tokens
        for index, block in enumerate(sample, start=1):
            length = len(block.prompt) + len(block.answer)
            row_ids += block.prompt + block.answer
            row_positions += range(image_tokens + 1, image_tokens + 1 + length)
            row_blocks += [index] * length
            row_answers += [False] * len(block.prompt) + [True] * len(block.answer)
            row_weights += [0.0] * len(block.prompt) + [1 / len(block.answer)] * len(block.answer)
        ids.append(torch.tensor(row_ids))
        positions.append(torch.tensor(row_positions))
        blocks.append(torch.tensor(row_blocks))
        answers.append(torch.tensor(row_answers))
        weights.append(torch.tensor(row_weights))
    return PackedBatch(
        input_ids=pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        position_ids=pad_sequence(positions, batch_first=True, padding_value=1),
        blocks=pad_sequence(blocks, batch_first=True, padding_value=PADDING_BLOCK),
        answers=pad_sequence(answers, batch_first=True, padding_value=False),
        weights=pad_sequence(weights, batch_first=True, padding_value=0.0),
    )
