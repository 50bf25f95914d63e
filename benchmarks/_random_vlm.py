"""VLMs of other sizes with random weights, so that costs can be measured where no weights can be downloaded."""

from pathlib import Path

import torch
from transformers import Gemma2Config

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

WIDE = SmallVLMSize(text_width=1280, vision_width=1280, heads=10)
"""Ten times as wide as the embedded VLM, and as deep."""
_PALIGEMMA2_3B = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
}
"""The decoder layers of PaliGemma-2-3B (its config.json); vocabulary and vision tower stay small here."""


def random_vlm(shape: str, layers: int | None = None) -> VLMBackbone:
    """A VLM of `wide` or `paligemma2-3b` shape, the latter with so many of its 26 decoder layers."""
    if shape == "wide":
        return build_small_vlm(["on", "table"], WIDE, seed=0, name=shape)
    size = SmallVLMSize(image_size=224, patch_size=14, text_width=2304, text_layers=layers or 26, heads=8)
    small = build_small_vlm(["on", "table"], SmallVLMSize(image_size=224, patch_size=14), 0, shape)
    config = small.model.config
    config.text_config = Gemma2Config(
        **{
            **config.text_config.to_dict(),
            **_PALIGEMMA2_3B,
            "num_hidden_layers": size.text_layers,
            "layer_types": None,
        }
    )
    config.projection_dim = config.vision_config.projection_dim = config.hidden_size = 2304
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return VLMBackbone(type(small.model)(config), small.processor, shape)


def resolve(vlm: str, folder: Path) -> str:
    """The directory of the VLM that a `--vlm` flag names; one of a shape above is written to `folder`."""
    if vlm not in ("wide", "paligemma2-3b"):
        return vlm
    random_vlm(vlm).save_pretrained(folder / vlm)
    return str(folder / vlm)
