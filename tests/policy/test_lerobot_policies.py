"""LeRobot's own policies, as it ships them with tiny random models, protected by blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

from aegis_policy.isolation import Anchor, FactorAccumulator, LowRankProjector
from aegis_policy.lerobot_policies import protect, vlm_linear_layers
from aegis_policy.optimizer_aegis import AegisAdamWConfig
from aegis_policy.support.errors import AegisError

CAMERA = "observation.images.front"
FEATURES = {
    "input_features": {
        CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
        OBS_STATE: PolicyFeature(FeatureType.STATE, (4,)),
    },
    "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (4,))},
    "device": "cpu",
    "chunk_size": 4,
    "n_action_steps": 4,
    "max_action_dim": 8,
    "max_state_dim": 8,
}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`make("pi0")`: one of LeRobot's policies with a backbone of two narrow layers and random weights."""

    def policy(name: str, dtype: str = "float32") -> Any:
        torch.manual_seed(0)
        made = _smolvla(tmp_path, dtype) if name == "smolvla" else _pi0(name, dtype, monkeypatch)
        return made.train()

    return policy


def _pi0(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    if name == "pi0":
        from lerobot.policies.pi0 import modeling_pi0 as module
        from lerobot.policies.pi0.configuration_pi0 import PI0Config as Config

        policy_class = module.PI0Policy
    else:
        from lerobot.policies.pi05 import modeling_pi05 as module
        from lerobot.policies.pi05.configuration_pi05 import PI05Config as Config

        policy_class = module.PI05Policy
    tiny = module.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=16)
    monkeypatch.setattr(module, "get_gemma_config", lambda variant: tiny)
    model = module.PaliGemmaForConditionalGenerationWithPiGemma

    def small(config: Any) -> Any:
        config.text_config.vocab_size = 64
        config.vision_config.num_hidden_layers = 1
        config.vision_config.projection_dim = 32
        return model(config=config)

    monkeypatch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", small)
    return policy_class(Config(**FEATURES, dtype=dtype, image_resolution=(224, 224)))


def _smolvla(folder: Path, dtype: str) -> Any:
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    return SmolVLAPolicy(
        SmolVLAConfig(
            **FEATURES,
            vlm_model_name=str(_tiny_smolvlm(folder / "vlm")),
            load_vlm_weights=dtype == "bfloat16",  # which it then loads in that precision
            train_expert_only=False,
            num_vlm_layers=2,
            resize_imgs_with_padding=(32, 32),
            expert_width_multiplier=1.0,
        )
    )


def _tiny_smolvlm(folder: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
        SmolVLMImageProcessor,
        SmolVLMProcessor,
        SmolVLMVideoProcessor,
    )

    words = ["<unk>", "<pad>", "<s>", "</s>", "<image>", "<fake_token_around_image>", "<global-img>", "go"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(
            zip(("image_token", "fake_image_token", "global_image_token"), words[4:7], strict=True)
        ),
    )
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 64,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=4,
        pad_token_id=1,
    )
    SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    SmolVLMProcessor(
        SmolVLMImageProcessor(),
        fast,
        SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template="{{ messages }}",
    ).save_pretrained(folder)
    return folder


def _batch(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        CAMERA: torch.rand(2, 3, 32, 32, generator=generator),
        OBS_STATE: torch.randn(2, 4, generator=generator),
        ACTION: torch.randn(2, 4, 4, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(5, 8, (2, 6), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones(2, 6, dtype=torch.bool),
    }


def _anchor(policy: Any) -> Anchor:
    """Of its language model's layers as they see robot batches: which data it is does not matter here."""
    layers = {
        name: layer
        for name, layer in vlm_linear_layers(policy).items()
        if ".layers." in name and "vision" not in name
    }
    accumulator = FactorAccumulator(layers, share=0.2)
    with accumulator.collect():
        policy.forward(_batch(0))[0].backward()
    reached = {
        name: layer
        for name, layer in layers.items()
        if layer.weight.grad is not None and layer.weight.grad.any()
    }
    policy.zero_grad()
    accumulator.layers = reached  # of the last layer the expert reads keys and values only
    return Anchor(factors=accumulator.factors())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["smolvla", "pi0", "pi05"])
def test_the_backbone_learns_only_outside_its_blocks(
    make: Callable[..., Any], name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make(name, dtype)
    anchor = _anchor(policy)
    for layer_name, layer in vlm_linear_layers(policy).items():
        layer.weight.requires_grad_(layer_name in anchor.factors)
    parameters = protect(policy, anchor, share=0.2)
    for call in (policy, policy.forward):
        with pytest.raises(AegisError, match=r"no optimizer that projects"):
            call(_batch(1))
    optimizer = AegisAdamWConfig(lr=1e-4).build(policy.get_optim_params())
    assert parameters.projects
    layers = vlm_linear_layers(policy)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for seed in range(3):
        policy(_batch(seed))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    (projector,) = parameters.projectors
    assert isinstance(projector, LowRankProjector)
    names = {id(layer.weight): layer_name for layer_name, layer in layers.items()}
    assert len(projector.blocks) == len(anchor.factors)
    for weight, block in projector.blocks:
        assert weight.dtype == getattr(torch, dtype)
        after = optimizer.state[weight].get("master", weight.detach())
        moved = (after - before[names[id(weight)]]).float()
        assert moved.norm() > 0, "gradients flow"
        assert block.shape[1] == round(0.2 * weight.shape[1])
        assert (moved @ block).norm() < 1e-3 * moved.norm()

    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for starts in (lambda: policy(_batch(0)), lambda: protect(policy, anchor)):
        with pytest.raises(AegisError, match=r"sharded"):
            starts()


def test_what_cannot_be_protected_is_refused(make: Callable[[str], Any]) -> None:
    policy = make("smolvla")
    with pytest.raises(AegisError, match="says nothing about"):
        protect(policy, Anchor())
    for layer in vlm_linear_layers(policy).values():
        layer.weight.requires_grad_(False)
    with pytest.raises(AegisError, match=r"No linear layer of the backbone of smolvla trains"):
        protect(policy, Anchor())
    policy.name = "act"
    with pytest.raises(AegisError, match="A policy of type act is not known here"):
        protect(policy, Anchor())


def test_a_weight_that_is_also_an_embedding_is_refused(make: Callable[..., Any]) -> None:
    policy = make("smolvla")
    anchor = _anchor(policy)
    layers = vlm_linear_layers(policy)
    for name, layer in layers.items():
        layer.weight.requires_grad_(name in anchor.factors)
    tied = next(layers[name] for name in anchor.factors if "up_proj" in name)
    embedding = policy.model.vlm_with_expert.vlm.get_input_embeddings()
    embedding.weight = tied.weight
    with pytest.raises(AegisError, match=r"embed_tokens.weight is also the weight of a linear layer"):
        protect(policy, anchor)


def test_a_policy_inside_adapters_is_refused(make: Callable[..., Any]) -> None:
    from peft import LoraConfig, get_peft_model

    policy = make("smolvla")
    wrapped = get_peft_model(policy, LoraConfig(target_modules=r".*vlm\.model\.text_model.*q_proj"))
    with pytest.raises(AegisError, match="before peft or anything else wraps it"):
        protect(wrapped, Anchor())
    with pytest.raises(AegisError, match=r"says nothing about .*lora_A"):
        protect(policy, Anchor())
