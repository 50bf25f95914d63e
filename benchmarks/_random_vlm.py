"""VLMs of other sizes with random weights, so that costs can be measured where no weights can be downloaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from _random_policy import TASK
from _shapes import PALIGEMMA2_3B_DECODER, SMOLLM2_135M
from tokenizers import AddedToken
from transformers import (
    Gemma2Config,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

WIDE = SmallVLMSize(text_width=1280, vision_width=1280, heads=10)
"""Ten times as wide as the embedded VLM, and as deep."""
SHAPES = ("wide", "smolvlm-256m", "paligemma2-3b")
"""Of the latter two the decoder is as released; vocabulary and vision tower stay small."""
_IMAGE_TOKENS = {
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_TURNS = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
)
_SIDE = 96
"""Pixels of an image of `smolvlm-256m`, which it reads as 64 tokens."""


def random_vlm(shape: str, layers: int | None = None, tower: Mapping[str, int] | None = None) -> VLMBackbone:
    """A VLM of one of `SHAPES` with random weights.

    Args:
        shape: of them.
        layers: of the decoder of `smolvlm-256m` or `paligemma2-3b`, if not all.
        tower: sizes of the vision tower of `paligemma2-3b`, if it is not to stay small.
    """
    if shape == "wide":
        return build_small_vlm(["on", "table"], WIDE, seed=0, name=shape)
    if shape == "smolvlm-256m":
        return _smolvlm(shape, layers or 30)
    size = SmallVLMSize(image_size=224, patch_size=14, text_width=2304, text_layers=layers or 26, heads=8)
    small = build_small_vlm(["on", "table"], SmallVLMSize(image_size=224, patch_size=14), 0, shape)
    config = small.model.config
    config.text_config = Gemma2Config(
        **{
            **config.text_config.to_dict(),
            **PALIGEMMA2_3B_DECODER,
            "query_pre_attn_scalar": PALIGEMMA2_3B_DECODER["head_dim"],
            "num_hidden_layers": size.text_layers,
            "layer_types": None,
        }
    )
    for name, value in (tower or {}).items():
        setattr(config.vision_config, name, value)
    config.projection_dim = config.vision_config.projection_dim = config.hidden_size = 2304
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VLMBackbone(type(small.model)(config), small.processor, shape)


def _smolvlm(name: str, layers: int) -> VLMBackbone:
    """A SmolVLM whose tokenizer is the small VLM's."""
    size = SmallVLMSize(image_size=_SIDE, patch_size=12)
    small = build_small_vlm([*TASK.split(), "user", "assistant"], size, seed=0, name=name)
    backend = small.processor.tokenizer.backend_tokenizer
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in _IMAGE_TOKENS.values()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token=_IMAGE_TOKENS["end_of_utterance_token"],
        unk_token="<unk>",
        model_max_length=2048,
        extra_special_tokens=_IMAGE_TOKENS,
    )
    vision = small.model.config.vision_config
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = SmolVLMConfig(
        vision_config={
            key: getattr(vision, key)
            for key in (
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "image_size",
                "patch_size",
            )
        },
        text_config={
            "model_type": "llama",
            "max_position_embeddings": 2048,
            "vocab_size": len(tokenizer),
            **SMOLLM2_135M,
            **ends,
            "num_hidden_layers": layers,
        },
        scale_factor=1,
        image_token_id=tokenizer.convert_tokens_to_ids(_IMAGE_TOKENS["image_token"]),
        **ends,
    )
    images = SmolVLMImageProcessor(
        size={"longest_edge": _SIDE}, max_image_size={"longest_edge": _SIDE}, do_image_splitting=False
    )
    processor = SmolVLMProcessor(
        images,
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=size.image_tokens,
        chat_template=_TURNS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VLMBackbone(SmolVLMForConditionalGeneration(config), processor, name)


def resolve(vlm: str, folder: Path, layers: int | None = None) -> str:
    """The directory of the VLM that a `--vlm` flag names; one of a shape above is written to `folder`."""
    if vlm not in SHAPES:
        return vlm
    random_vlm(vlm, layers).save_pretrained(folder / vlm)
    return str(folder / vlm)
