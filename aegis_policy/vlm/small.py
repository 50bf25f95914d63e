"""A PaliGemma-2-shaped VLM of any size with random weights, for training from scratch and for tests.

It is an ordinary `PaliGemmaForConditionalGeneration` (SigLIP vision tower, linear projector, Gemma 2 decoder) with an
ordinary `PaliGemmaProcessor`; only its sizes and its vocabulary are small.
"""

from collections.abc import Iterable

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small_size import SmallVLMSize

_IMAGE_MEAN, _IMAGE_STD = 0.32, 0.14
"""Mean and deviation of rendered tabletop frames. Centred pixels matter when training from scratch: a common offset
moves every patch embedding alike at every step, and drowns what the patches show."""
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'-\n"


def build_small_vlm(words: Iterable[str], size: SmallVLMSize, seed: int, name: str) -> VLMBackbone:
    """A randomly initialised VLM whose tokenizer knows `words` whole and spells out everything else."""
    tokenizer = _word_tokenizer(words)
    image_processor = transformers.SiglipImageProcessor(
        size={"height": size.image_size, "width": size.image_size},
        image_mean=[_IMAGE_MEAN] * 3,
        image_std=[_IMAGE_STD] * 3,
    )
    image_processor.image_seq_length = size.image_tokens
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(
            hidden_size=size.vision_width,
            intermediate_size=4 * size.vision_width,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.heads,
            image_size=size.image_size,
            patch_size=size.patch_size,
            projection_dim=size.text_width,
            vision_use_head=False,
        ),
        text_config=transformers.Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=size.text_width,
            intermediate_size=4 * size.text_width,
            num_hidden_layers=size.text_layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            head_dim=size.text_width // size.heads,
            query_pre_attn_scalar=size.text_width // size.heads,
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            max_position_embeddings=2048,
            sliding_window=2048,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_id=processor.image_token_id,
        projection_dim=size.text_width,
        hidden_size=size.text_width,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.PaliGemmaForConditionalGeneration(config)
    return VLMBackbone(model, processor, name)


def _word_tokenizer(words: Iterable[str]) -> "transformers.PreTrainedTokenizerFast":
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    pieces = [*_CHARACTERS, *(f"##{character}" for character in _CHARACTERS if character.isalnum())]
    vocabulary = dict.fromkeys([*special, *pieces, *sorted({word.lower() for word in words})])
    model = models.WordPiece({word: index for index, word in enumerate(vocabulary)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[ \t]+"), "removed"),
            pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=2048,
    )
