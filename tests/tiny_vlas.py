"""LeRobot's own policies at a tiny size with random weights, as a user's directory would hold them.

`pi0`, `pi05` and `pi0_fast` come in two sizes of billions alone, so their modules are given a third one wherever they
are imported: `watch_imports` here, and in every process whose `PYTHONPATH` begins with the folder of
`shrinking_folder`.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PI_TYPES = ("pi0", "pi05", "pi0_fast")
TYPES = ("smolvla", *PI_TYPES, "eo1")
SIZED = tuple(f"lerobot.policies.{name}.modeling_{name}" for name in PI_TYPES)
"""Modules that shrink."""
_WORDS = "what colour is the cube sphere red green blue reach push action : | answer en"
_FAST = "fast"
TOKENIZER = "google/paligemma-3b-pt-224"
"""What LeRobot asks the hub for."""
SMOLVLA_FLAGS = {
    "train_expert_only": "false",
    "num_vlm_layers": "2",
    "resize_imgs_with_padding": "[32,32]",
    "expert_width_multiplier": "1.0",
}
PI_FLAGS = {"image_resolution": "[32,32]", "tokenizer_max_length": "32"}
FAST_FLAGS = {
    "validate_action_token_prefix": "false",  # whose letters the tiny tokenizer makes small
    "max_action_tokens": "32",
    "max_decoding_steps": "8",
}
EO1_FLAGS = {"image_min_pixels": "784", "image_max_pixels": "3136"}
COMMON_FLAGS = {
    "chunk_size": "4",
    "n_action_steps": "4",
    "max_action_dim": "8",
    "max_state_dim": "8",
    "device": "cpu",
}


class _Shrinking(importlib.abc.MetaPathFinder):
    """Shrinks the modules that have sizes as soon as they have been imported."""

    def __init__(self, words: int, image_token: int) -> None:
        self._vocabulary = words, image_token

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in SIZED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            shrink(module, *self._vocabulary)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def watch_imports(words: int, image_token: int) -> None:
    """Have the policies small that this process imports from now on."""
    sys.meta_path.insert(0, _Shrinking(words, image_token))


def shrinking_folder(folder: Path, vlm: Path) -> Path:
    """A folder that does so for processes which have it in front of their `PYTHONPATH`.

    `vlm` has the tokenizer that those will find (`cached_on_the_hub`).
    """
    words, image_token = vocabulary(vlm)
    (folder / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(Path(__file__).parent)!r})\n"
        f"from tiny_vlas import watch_imports\nwatch_imports({words}, {image_token})\n"
    )
    return folder


def vocabulary(vlm: Path) -> tuple[int, int]:
    """How many tokens the tokenizer of a VLM has, and which of them stands for a part of an image."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(vlm)
    return len(tokenizer), tokenizer.convert_tokens_to_ids("<image>")


def shrink(
    module: Any, words: int, image_token: int, replace: Callable[[Any, str, Any], None] = setattr
) -> None:
    """Give a module of `SIZED` models of two narrow layers; `replace` may be a monkeypatch's."""
    tiny = module.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=16)
    whole, expert = (
        getattr(module, name, None)  # `pi0_fast` has no expert
        for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM")
    )

    def small(config: Any) -> Any:
        config.text_config.vocab_size = words
        config.image_token_index = config.image_token_id = image_token
        config.projection_dim = config.vision_config.projection_dim = 32
        config.vision_config.hidden_size, config.vision_config.intermediate_size = 32, 64
        config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 1, 2
        config.vision_config.image_size, config.vision_config.patch_size = 32, 16
        return whole(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 8
        return expert(config=config)

    replace(module, "get_gemma_config", lambda variant: tiny)
    replace(module, "PaliGemmaForConditionalGenerationWithPiGemma", small)
    if expert is not None:
        replace(module, "PiGemmaForCausalLM", small_expert)


def cached_on_the_hub(home: Path, vlm: Path) -> Path:
    """A `HF_HOME` in which the hub's PaliGemma, as far as LeRobot reads it, is the processor of this VLM."""
    repository = home / "hub" / f"models--{TOKENIZER.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    for file in vlm.iterdir():
        if file.suffix in (".json", ".jinja") or file.name.startswith("tokenizer"):
            (snapshot / file.name).write_bytes(file.read_bytes())
    return home


def save_vlm(kind: str, folder: Path) -> Path:
    """Write the VLM whose words and processor a type takes, and its weights `smolvla` and `eo1`; return where."""
    from tiny_vlms import save_tiny_vlm

    if kind == "smolvla":
        return save_tiny_vlm("smolvlm", folder)
    if kind == "eo1":
        return save_tiny_vlm("qwen2_5_vl", folder, spare_words=8)  # which it adds
    from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

    size = SmallVLMSize(
        image_size=32, patch_size=16, vision_layers=1, vision_width=32, text_layers=2, text_width=32, heads=2
    )
    words = [*_WORDS.split(), *(f"spare{index}" for index in range(300))]  # LeRobot leaves the last 128 alone
    build_small_vlm(words, size, seed=0, name=str(folder)).save_pretrained(folder)
    _save_action_tokenizer(folder / _FAST)
    return folder


def _save_action_tokenizer(folder: Path) -> None:
    """Write a FAST tokenizer of random chunks as the hub has one: a processor with a module of its own."""
    import numpy as np
    from lerobot.policies.molmoact2.modeling_molmoact2 import UniversalActionProcessor

    chunks = list(np.random.default_rng(0).normal(size=(64, 4, 3)))
    UniversalActionProcessor.fit(chunks, scale=2, vocab_size=300).save_pretrained(folder)
    (folder / "processing.py").write_text(
        "from lerobot.policies.molmoact2 import modeling_molmoact2\n\n\n"
        "class UniversalActionProcessor(modeling_molmoact2.UniversalActionProcessor):\n"
        "    pass\n"
    )
    file = folder / "processor_config.json"
    held = json.loads(file.read_text())
    file.write_text(
        json.dumps({**held, "auto_map": {"AutoProcessor": "processing.UniversalActionProcessor"}})
    )


def flags_of(kind: str, vlm: Path) -> dict[str, str]:
    """What `--policy.*` must say of the tiny policy of a type; `vlm` is of `save_vlm`."""
    own = {
        "smolvla": {**SMOLVLA_FLAGS, "vlm_model_name": str(vlm)},
        "eo1": {**EO1_FLAGS, "vlm_base": str(vlm)},
        "pi0_fast": {
            **PI_FLAGS,
            **FAST_FLAGS,
            "text_tokenizer_name": str(vlm),
            "action_tokenizer_name": str(vlm / _FAST),
        },
    }
    return {**COMMON_FLAGS, **own.get(kind, PI_FLAGS)}


def make(type_name: str, flags: dict[str, str], dataset: Path) -> Any:
    """A policy for a dataset, as LeRobot makes it, always with the same random weights."""
    import draccus
    import torch
    from lerobot.configs import PreTrainedConfig
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    torch.manual_seed(0)
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    config_class = PreTrainedConfig.get_choice_class(type_name)
    config = draccus.parse(config_class=config_class, args=["--push_to_hub=false", *arguments])
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/tiny", root=dataset))
    if hasattr(policy, "action_tokenizer") and config.pretrained_path is None:
        _say_actions(policy)
    return policy


def _say_actions(policy: Any) -> None:
    """Have a `pi0_fast` with random weights say none but words that are actions."""
    import torch

    words = policy.model.paligemma_with_expert.paligemma.get_output_embeddings().weight
    last = policy._paligemma_tokenizer.vocab_size - policy.config.fast_skip_tokens
    others = torch.ones(len(words), dtype=torch.bool)
    others[last - len(policy.action_tokenizer.tokenizer) : last] = False
    with torch.no_grad():
        words[others] *= 0.01


def save_base(kind: str, vlm: Path, dataset: Path, folder: Path) -> None:
    """Write a policy with random weights and its processors, as training on a dataset would."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies import make_pre_post_processors

    policy = make(kind, flags_of(kind, vlm), dataset)
    policy.save_pretrained(folder)
    data = LeRobotDatasetMetadata("local/tiny", root=dataset)
    for each in make_pre_post_processors(policy.config, dataset_stats=data.stats):
        each.save_pretrained(folder)


def load(folder: Path) -> Any:
    """A policy of whatever type as LeRobot reads it."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies import get_policy_class

    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder, config=config)


def random_batch(policy: Any, seed: int) -> dict[str, Any]:
    """What comes out of a policy's processor: two samples for the tiny dataset."""
    import torch
    from lerobot.policies import make_pre_post_processors
    from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

    generator = torch.Generator().manual_seed(seed)
    batch = {
        **{
            f"observation.images.{camera}": torch.rand(2, 3, 32, 32, generator=generator)
            for camera in ("front", "wrist")
        },
        OBS_STATE: torch.randn(2, 5, generator=generator),
        ACTION: torch.randn(2, 4, 3, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(1, 8, (2, 6), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones(2, 6, dtype=torch.bool),
    }
    if policy.config.type.endswith(("eo1", "pi0_fast")):  # whose inputs are more than words
        preprocessor, _ = make_pre_post_processors(policy.config)
        batch = preprocessor({**batch, "task": ["reach the red cube"] * 2})
    return batch


def train(policy: Any, steps: int, lr: float | None = None) -> Any:
    """Steps of the optimizer that LeRobot would build for the policy, which is returned."""
    preset = policy.config.get_optimizer_preset()
    if lr is not None:
        preset.lr = lr
    policy.train()
    optimizer = preset.build(policy.get_optim_params())
    for seed in range(steps):
        loss, _ = policy.forward(random_batch(policy, seed))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


if __name__ == "__main__":
    save_base(sys.argv[1], *map(Path, sys.argv[2:]))
