"""LeRobot's own policies at a tiny size, plain and protected, in this process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lerobot.policies.pi0.modeling_pi0
import lerobot.policies.pi05.modeling_pi05
import numpy as np
import pytest
from tiny_vlas import flags_of, load, make, shrink, vocabulary
from tiny_vlms import save_tiny_vlm

import aegis_policy.lerobot_vlas.configuration_vlas  # noqa: F401  # their types
from aegis_policy.anchors.building import build_anchor
from aegis_policy.lerobot_vlas import inner
from aegis_policy.vqa.examples import VQAExample


@pytest.fixture(scope="session")
def tiny_smolvlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SmolVLM with random weights, which `smolvla` is told to build on."""
    return save_tiny_vlm("smolvlm", tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture(autouse=True)
def small(tiny_vlm_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pi0` and `pi05` are small, and PaliGemma's processor is that of the tiny VLM."""
    for module in (lerobot.policies.pi0.modeling_pi0, lerobot.policies.pi05.modeling_pi05):
        shrink(module, *vocabulary(tiny_vlm_dir), monkeypatch.setattr)
    monkeypatch.setattr(inner, "_PALIGEMMA", str(tiny_vlm_dir))


@pytest.fixture
def make_vla(tiny_smolvlm: Path, tiny_dataset: Path) -> Callable[..., Any]:
    """`make_vla("aegis_pi05", protection="none")`: a policy of any type and flags, for the tiny dataset."""

    def vla(name: str, **flags: Any) -> Any:
        texts = {key: str(value) for key, value in flags.items()}
        return make(name, {**flags_of(inner.plain_type(name) or "", tiny_smolvlm), **texts}, tiny_dataset)

    return vla


@pytest.fixture
def save_base_and_anchor(make_vla: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """`save_base_and_anchor("pi05")`: the folder of one of LeRobot's policies, and an anchor of the VLM inside."""

    def save(name: str, **flags: Any) -> tuple[Path, Path]:
        base, anchor = tmp_path / f"base-{name}", tmp_path / f"{name}.safetensors"
        make_vla(name, **flags).save_pretrained(base)
        policy = load(base)
        images = np.random.default_rng(1).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
        examples = (VQAExample(image, "what colour is the cube") for image in images)
        vlm = inner.backbone_of(policy, str(base))
        kinds = ["subspace", "fisher"]
        build_anchor(vlm, examples, kinds=kinds, source="noise", batch_size=8, share=0.5).save(anchor)
        return base, anchor

    return save
