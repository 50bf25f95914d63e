"""LeRobot's own policies at a tiny size, plain and protected, in this process."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_vlas import SIZED, flags_of, load, make, save_vlm, shrink, vocabulary

import aegis_policy.lerobot_vlas.configuration_vlas  # noqa: F401  # their types
from aegis_policy.anchors.building import build_anchor
from aegis_policy.lerobot_vlas import inner
from aegis_policy.vqa.examples import VQAExample


@pytest.fixture(scope="session")
def vlm_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`vlm_of("eo1")`: a VLM with random weights, which a type is told to build on."""
    return cache(lambda kind: save_vlm(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def remote_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where transformers puts modules of tokenizers, instead of the user's cache."""
    return tmp_path_factory.mktemp("modules")


@pytest.fixture(autouse=True)
def small(vlm_of: Callable[[str], Path], remote_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types of `SIZED` are small, and PaliGemma's processor is that of a tiny VLM."""
    paligemma = vlm_of("pi0")
    for module in SIZED:
        shrink(import_module(module), *vocabulary(paligemma), monkeypatch.setattr)
    monkeypatch.setattr(inner, "_PALIGEMMA", str(paligemma))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(remote_code))


@pytest.fixture
def make_vla(vlm_of: Callable[[str], Path], tiny_dataset: Path) -> Callable[..., Any]:
    """`make_vla("aegis_pi05", protection="none")`: a policy of any type and flags, for the tiny dataset or another."""

    def vla(name: str, dataset: Path = tiny_dataset, **flags: Any) -> Any:
        texts = {key: str(value) for key, value in flags.items()}
        kind = inner.plain_type(name) or ""
        return make(name, {**flags_of(kind, vlm_of(kind)), **texts}, dataset)

    return vla


@pytest.fixture
def save_base_and_anchor(make_vla: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """`save_base_and_anchor("pi05")`: the folder of one of LeRobot's policies, and an anchor of the VLM inside."""

    def save(name: str, **flags: Any) -> tuple[Path, Path]:
        base, anchor = tmp_path / f"base-{name}", tmp_path / f"{name}.safetensors"
        make_vla(name, **flags).save_pretrained(base)
        policy = load(base)
        images = np.random.default_rng(1).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)
        examples = (VQAExample(image, "what colour is the cube") for image in images)
        vlm = inner.backbone_of(policy, str(base))
        kinds = ["subspace", "fisher"]
        build_anchor(vlm, examples, kinds=kinds, source="noise", batch_size=32, share=0.5).save(anchor)
        return base, anchor

    return save
