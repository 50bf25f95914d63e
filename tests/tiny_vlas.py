"""LeRobot's own policies at a tiny size with random weights, as a user's directory would hold them.

`pi0` and `pi05` come in two sizes of billions alone, so their modules are given a third one wherever they are
imported: `watch_imports` here, and in every process whose `PYTHONPATH` begins with the folder of `shrinking_folder`.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

_SIZED = ("lerobot.policies.pi0.modeling_pi0", "lerobot.policies.pi05.modeling_pi05")
TYPES = ("smolvla", "pi0", "pi05")
TOKENIZER = "google/paligemma-3b-pt-224"
"""What LeRobot asks the hub for."""
SMOLVLA_FLAGS = {
    "train_expert_only": "false",
    "num_vlm_layers": "2",
    "resize_imgs_with_padding": "[32,32]",
    "expert_width_multiplier": "1.0",
}
PI_FLAGS = {"image_resolution": "[32,32]", "tokenizer_max_length": "32"}
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
        if name not in _SIZED:
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
    """Give the module of `pi0` or `pi05` models of two narrow layers; `replace` may be a monkeypatch's."""
    tiny = module.GemmaConfig(width=32, depth=2, mlp_dim=64, num_heads=8, num_kv_heads=1, head_dim=16)
    whole, expert = module.PaliGemmaForConditionalGenerationWithPiGemma, module.PiGemmaForCausalLM

    def small(config: Any) -> Any:
        config.text_config.vocab_size = words
        config.image_token_index = config.image_token_id = image_token
        config.projection_dim = config.vision_config.projection_dim = 32
        config.vision_config.hidden_size, config.vision_config.intermediate_size = 32, 64
        config.vision_config.num_hidden_layers, config.vision_config.num_attention_heads = 1, 2
        config.vision_config.patch_size = 16
        return whole(config=config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 8
        return expert(config=config)

    replace(module, "get_gemma_config", lambda variant: tiny)
    replace(module, "PaliGemmaForConditionalGenerationWithPiGemma", small)
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


def flags_of(kind: str, smolvlm: Path) -> dict[str, str]:
    """What `--policy.*` must say of the tiny policy of a type."""
    own = {**SMOLVLA_FLAGS, "vlm_model_name": str(smolvlm)} if kind == "smolvla" else PI_FLAGS
    return {**COMMON_FLAGS, **own}


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
    return make_policy(config, ds_meta=LeRobotDatasetMetadata("local/tiny", root=dataset))


def save_base(kind: str, smolvlm: Path, dataset: Path, folder: Path) -> None:
    """Write a policy with random weights and its processors, as training on a dataset would."""
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
    from lerobot.policies import make_pre_post_processors

    policy = make(kind, flags_of(kind, smolvlm), dataset)
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


def random_batch(seed: int) -> dict[str, Any]:
    """What comes out of a processor: two samples for the tiny dataset."""
    import torch
    from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE

    generator = torch.Generator().manual_seed(seed)
    return {
        **{
            f"observation.images.{camera}": torch.rand(2, 3, 32, 32, generator=generator)
            for camera in ("front", "wrist")
        },
        OBS_STATE: torch.randn(2, 5, generator=generator),
        ACTION: torch.randn(2, 4, 3, generator=generator),
        OBS_LANGUAGE_TOKENS: torch.randint(1, 8, (2, 6), generator=generator),
        OBS_LANGUAGE_ATTENTION_MASK: torch.ones(2, 6, dtype=torch.bool),
    }


def train(policy: Any, steps: int, lr: float | None = None) -> Any:
    """Steps of the optimizer that LeRobot would build for the policy, which is returned."""
    preset = policy.config.get_optimizer_preset()
    if lr is not None:
        preset.lr = lr
    policy.train()
    optimizer = preset.build(policy.get_optim_params())
    for seed in range(steps):
        loss, _ = policy.forward(random_batch(seed))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


if __name__ == "__main__":
    save_base(sys.argv[1], *map(Path, sys.argv[2:]))
