"""A tiny model of every VLM family with random weights, tokenizer and processor, as a user's directory would hold it.

The chat templates follow those that the families ship, without their tools and videos.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from aegis_policy.vlm.small import SmallVLMSize

SMALLEST_SIZE = SmallVLMSize(
    patch_size=32, vision_layers=1, vision_width=32, text_layers=1, text_width=32, heads=2
)
"""Of what `aegis-pretrain` trains in tests."""
_WIDTH, _LAYERS, _HEADS = 32, 2, 2
_TEXT = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": 1,
    "head_dim": _WIDTH // _HEADS,
    "max_position_embeddings": 1024,
}
_SIGLIP = {
    "hidden_size": _WIDTH,
    "intermediate_size": 2 * _WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": _HEADS,
    "image_size": 32,
    "patch_size": 8,
    "vision_use_head": False,
}


@dataclass(frozen=True)
class _Recipe:
    build: Callable[[Any], tuple[Any, Any]]
    """Tokenizer -> configuration and processor."""
    template: str
    end: str
    """What ends an answer."""
    special: tuple[str, ...]
    named: dict[str, str] = field(default_factory=dict)
    """Attributes of the tokenizer that the processor looks for."""


def save_tiny_vlm(family: str, directory: Path, spare_words: int = 0) -> Path:
    """Write a model of `family`, a key of `FAMILY_RECIPES` or `llava`, and return where.

    It has embeddings of so many more words than its tokenizer knows.
    """
    recipe = {**FAMILY_RECIPES, **_OTHERS}[family]
    tokenizer = _byte_tokenizer(recipe)
    config, processor = recipe.build(tokenizer)
    processor.chat_template = recipe.template
    text = config.get_text_config()
    text.vocab_size = len(tokenizer) + spare_words
    for each in (config, text):
        each.pad_token_id, each.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # so that no answer is sure and every layer matters
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def _byte_tokenizer(recipe: _Recipe) -> hf.PreTrainedTokenizerFast:
    """Every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", *recipe.special]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token=recipe.end,
        padding_side="right",
        model_max_length=1024,
        extra_special_tokens=recipe.named,
    )


def _idefics(config: type, processor: type, images: Any, **more: Any) -> Callable[[Any], tuple[Any, Any]]:
    def build(tokenizer: Any) -> tuple[Any, Any]:
        image_token = tokenizer.convert_tokens_to_ids("<image>")
        return (
            config(
                vision_config=_SIGLIP,
                text_config={"model_type": "llama", **_TEXT},
                scale_factor=2,
                image_token_id=image_token,
            ),
            processor(
                image_processor=images(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
                tokenizer=tokenizer,
                image_seq_len=4,
                **more,
            ),
        )

    return build


def _qwen(
    config: type, processor: type, videos: type, patch_size: int, **vision: Any
) -> Callable[[Any], tuple[Any, Any]]:
    def build(tokenizer: Any) -> tuple[Any, Any]:
        ids = {
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
            for name, token in (
                ("image", "<|image_pad|>"),
                ("video", "<|video_pad|>"),
                ("vision_start", "<|vision_start|>"),
                ("vision_end", "<|vision_end|>"),
            )
        }
        sizes = {
            "depth": 2,
            "hidden_size": _WIDTH,
            "intermediate_size": 2 * _WIDTH,
            "num_heads": _HEADS,
            "out_hidden_size": _WIDTH,
            "patch_size": patch_size,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        }
        edge = 2 * patch_size
        return (
            config(
                vision_config={**sizes, **vision},
                text_config={
                    **_TEXT,
                    "rope_parameters": {
                        "rope_type": "default",
                        "mrope_section": [2, 3, 3],
                        "rope_theta": 1e4,
                    },
                },
                **ids,
            ),
            processor(
                image_processor=hf.Qwen2VLImageProcessor(
                    patch_size=patch_size, size={"shortest_edge": edge**2, "longest_edge": 4 * edge**2}
                ),
                tokenizer=tokenizer,
                video_processor=videos(),
            ),
        )

    return build


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    config = hf.Gemma3Config(
        vision_config=_SIGLIP,
        text_config={**_TEXT, "query_pre_attn_scalar": _WIDTH // _HEADS, "sliding_window": 512},
        mm_tokens_per_image=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
    )
    images = hf.Gemma3ImageProcessor(size={"height": 32, "width": 32})
    return config, hf.Gemma3Processor(images, tokenizer, image_seq_length=4)


def _llava_onevision(tokenizer: Any) -> tuple[Any, Any]:
    config = hf.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", **_SIGLIP},
        text_config={"model_type": "qwen2", **_TEXT},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32]],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(
            size={"height": 32, "width": 32}, image_grid_pinpoints=config.image_grid_pinpoints
        ),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size={"height": 32, "width": 32}),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    return config, processor


def _llava(tokenizer: Any) -> tuple[Any, Any]:
    config = hf.LlavaConfig(
        vision_config={"model_type": "siglip_vision_model", **_SIGLIP},
        text_config={"model_type": "llama", **_TEXT},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    images = hf.SiglipImageProcessor(size={"height": 32, "width": 32})
    return config, hf.LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="full")


def _chatml(image: str) -> str:
    return (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
        + image
        + "{% else %}{{ part['text'] }}"
        "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


_LLAVA_ONEVISION_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + ' ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}\n{{ part['text'] }}{% endfor %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Its own answers stand behind "assistant ", with a blank, and those asked for do not."""
_IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GEMMA_TEMPLATE = (
    "<bos>{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else 'user' }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<start_of_image>{% else %}"
    "{{ part['text'] | trim }}{% endif %}{% endfor %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_IDEFICS_TOKENS = (
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    "<video>",
)
_QWEN_TOKENS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

FAMILY_RECIPES = {
    "smolvlm": _Recipe(
        lambda tokenizer: _idefics(
            hf.SmolVLMConfig,
            hf.SmolVLMProcessor,
            hf.SmolVLMImageProcessor,
            video_processor=hf.SmolVLMVideoProcessor(),
        )(tokenizer),
        _IDEFICS_TEMPLATE,
        "<end_of_utterance>",
        _IDEFICS_TOKENS,
        {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
        },
    ),
    "idefics3": _Recipe(
        lambda tokenizer: _idefics(hf.Idefics3Config, hf.Idefics3Processor, hf.Idefics3ImageProcessor)(
            tokenizer
        ),
        _IDEFICS_TEMPLATE,
        "<end_of_utterance>",
        _IDEFICS_TOKENS,
    ),
    "qwen2_5_vl": _Recipe(
        lambda tokenizer: _qwen(
            hf.Qwen2_5_VLConfig,
            hf.Qwen2_5_VLProcessor,
            hf.Qwen2VLVideoProcessor,
            14,
            fullatt_block_indexes=[1],
            window_size=56,
        )(tokenizer),
        _chatml(_QWEN_IMAGE),
        "<|im_end|>",
        _QWEN_TOKENS,
    ),
    "qwen3_vl": _Recipe(
        lambda tokenizer: _qwen(
            hf.Qwen3VLConfig,
            hf.Qwen3VLProcessor,
            hf.Qwen3VLVideoProcessor,
            16,
            deepstack_visual_indexes=[0],
            num_position_embeddings=64,
        )(tokenizer),
        _chatml(_QWEN_IMAGE),
        "<|im_end|>",
        _QWEN_TOKENS,
    ),
    "gemma3": _Recipe(
        _gemma3,
        _GEMMA_TEMPLATE,
        "<end_of_turn>",
        (
            "<bos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    ),
    "llava_onevision": _Recipe(
        _llava_onevision,
        _LLAVA_ONEVISION_TEMPLATE,
        "<|im_end|>",
        ("<|im_start|>", "<|im_end|>", "<image>", "<video>"),
    ),
}
"""One for each family that the package knows, but PaliGemma, which it can build itself."""
_OTHERS = {
    "llava": _Recipe(_llava, _chatml("<image>\n"), "<|im_end|>", ("<|im_start|>", "<|im_end|>", "<image>"))
}


def smallest_size_flags() -> list[str]:
    """`SMALLEST_SIZE` for the command line of `aegis-pretrain`."""
    return [f"--size.{name}={value}" for name, value in asdict(SMALLEST_SIZE).items()]
