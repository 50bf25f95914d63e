"""Packed sequences: what each token may see, and that one block is the model's own path to the last bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aegis_eval.pretraining.batches import QuestionBatches
from aegis_eval.pretraining.packing import Block, PackedBatch, pack
from aegis_policy.vlm.backbone import VLMBackbone

IMAGE_TOKENS = 2
FIRST, SECOND = Block([10, 11], [12, 13]), Block([20, 21, 22], [23])


@pytest.fixture
def packed() -> PackedBatch:
    return pack([[FIRST, SECOND], [FIRST]], IMAGE_TOKENS, image_token_id=9, pad_token_id=0)


def test_blocks_lie_behind_the_image_and_all_start_at_the_same_position(packed: PackedBatch) -> None:
    assert packed.input_ids.tolist() == [
        [9, 9, 10, 11, 12, 13, 20, 21, 22, 23],
        [9, 9, 10, 11, 12, 13, 0, 0, 0, 0],
    ]
    assert packed.position_ids[0].tolist() == [1, 2, 3, 4, 5, 6, 3, 4, 5, 6]


def test_a_block_sees_the_image_and_itself_and_answers_are_causal(packed: PackedBatch) -> None:
    sees = packed.attention_mask(image_sees_prompt=False)[0, 0]
    rows = ["".join("x" if seen else "." for seen in row) for row in sees]
    assert rows == [
        "xx........",
        "xx........",
        "xxxx......",
        "xxxx......",
        "xxxxx.....",
        "xxxxxx....",
        "xx....xxx.",
        "xx....xxx.",
        "xx....xxx.",
        "xx....xxxx",
    ]


def test_padding_is_seen_by_nothing_but_itself(packed: PackedBatch) -> None:
    sees = packed.attention_mask(image_sees_prompt=False)[1, 0]
    assert not sees[:6, 6:].any()
    assert sees[6:, 6:].diagonal().all()


def test_targets_are_the_answers_shifted_by_one(packed: PackedBatch) -> None:
    predicts, targets, weights = packed.targets()
    assert weights.tolist() == [0.5, 0.5, 1.0, 0.5, 0.5], "every answer counts as much as any other"
    assert targets.tolist() == [12, 13, 23, 12, 13]
    assert predicts.nonzero().tolist() == [[0, 3], [0, 4], [0, 8], [1, 3], [1, 4]]


def _logits(
    vlm: VLMBackbone, pixel_values: torch.Tensor, batch: PackedBatch, image_sees_prompt: bool
) -> torch.Tensor:
    mask = batch.attention_mask(image_sees_prompt)
    with torch.no_grad():
        return vlm.model(
            input_ids=batch.input_ids,
            pixel_values=pixel_values,
            attention_mask={"full_attention": mask, "sliding_attention": mask},
            position_ids=batch.position_ids,
        ).logits


def test_one_block_of_the_training_gives_the_logits_of_the_models_own_path(tiny_vlm_dir: Path) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    block = QuestionBatches([], vlm, steps=1, batch_size=1, questions=1, seed=0).block(
        "what colour is the cube?", "red"
    )
    asked = vlm.question_inputs([np.asarray(image)], ["what colour is the cube?"])["input_ids"][0].tolist()
    assert asked[vlm.processor.image_seq_length :] == block.prompt
    inputs = vlm.processor(
        images=[[image]],
        text=["<image>answer en what colour is the cube?"],
        suffix=["red"],
        return_tensors="pt",
    )
    labels = inputs.pop("labels")[0]
    assert labels[labels != -100].tolist() == block.answer
    batch = pack([[block]], vlm.processor.image_seq_length, vlm.processor.image_token_id, 0)
    assert torch.equal(batch.input_ids, inputs["input_ids"])
    with torch.no_grad():
        expected = vlm.model(**inputs).logits
    torch.testing.assert_close(
        _logits(vlm, inputs["pixel_values"], batch, True), expected, atol=1e-6, rtol=1e-6
    )


def test_packing_blocks_together_gives_the_logits_of_each_alone(tiny_vlm_dir: Path) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    tokens = vlm.processor.image_seq_length
    pixel_values = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def logits(blocks: list[Block]) -> torch.Tensor:
        batch = pack([blocks], tokens, vlm.processor.image_token_id, 0)
        return _logits(vlm, pixel_values, batch, image_sees_prompt=False)[0]

    together = logits([FIRST, SECOND])
    torch.testing.assert_close(together[: tokens + 4], logits([FIRST]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[tokens + 4 :], logits([SECOND])[tokens:], atol=1e-5, rtol=1e-5)
