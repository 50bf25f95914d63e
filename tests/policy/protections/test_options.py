"""Options of protections that cannot be are refused in one sentence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer

from aegis_policy.anchors.building import build_anchor
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample


def test_stop_gradient_refuses_to_train_the_tower(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(AegisError, match=r"stop_gradient lets no gradient into the VLM.*train_vision_tower"):
        make_config("stop_gradient", train_vision_tower=True)


def test_unknown_protection_is_answered_with_the_known_ones(make_config: Callable[..., AegisConfig]) -> None:
    with pytest.raises(
        AegisError, match=r"--policy.protection=prayer is unknown.*none, freeze, stop_gradient, .*aegis"
    ):
        make_config("prayer")


@pytest.mark.parametrize(("protection", "penalty"), [("none", 1.0), ("aegis", 1.0), ("l2_sp", -1.0)])
def test_a_penalty_where_there_is_none_is_refused(
    make_config: Callable[..., AegisConfig], protection: str, penalty: float
) -> None:
    with pytest.raises(AegisError, match=r"--policy.penalty(=.* must not be negative| changes nothing with)"):
        make_config(protection, penalty=penalty)


@pytest.mark.parametrize(
    ("protection", "option"),
    [
        ("none", {"anchor": "gaussian"}),
        ("none", {"anchor_path": Path("anchor.safetensors")}),
        ("aegis", {"lora_rank": 4}),
        ("lora", {"replay_batch_size": 4}),
        ("replay", {"action_bins": 64}),
        ("freeze", {"lora_alpha": 4}),
        ("none", {"replay_data": "okvqa"}),
    ],
)
def test_an_option_of_another_protection_is_refused(
    make_config: Callable[..., AegisConfig], protection: str, option: dict[str, Any]
) -> None:
    (name,) = option
    with pytest.raises(
        AegisError, match=f"--policy.{name} changes nothing with --policy.protection={protection}"
    ):
        make_config(protection, **option)


@pytest.mark.parametrize(
    ("kinds", "anchor"),
    [(["gaussian"], "subspace"), (["subspace"], "gaussian")],
)
def test_an_anchor_of_another_kind_says_how_to_make_the_right_one(
    make_policy: MakePolicy, tiny_vlm_dir: Path, tmp_path: Path, kinds: list[str], anchor: str
) -> None:
    pairs = (VQAExample(np.zeros((32, 32, 3), dtype=np.uint8), "what is it") for _ in range(2))
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    build_anchor(vlm, pairs, kinds=kinds, source="noise", batch_size=2).save(tmp_path / "anchor.safetensors")
    with pytest.raises(
        AegisError,
        match=rf"--policy.anchor={anchor} needs: rebuild it with aegis-anchor --kinds=\[{anchor}\]",
    ):
        make_policy("aegis", anchor=anchor, anchor_path=tmp_path / "anchor.safetensors")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"anchor": "sheet"}, r"--policy.anchor=sheet is unknown"),
        ({"anchor": "gaussian+sheet"}, r"--policy.anchor=gaussian\+sheet is unknown"),
        ({"anchor": "subspace", "anchor_share": 0.0}, r"--policy.anchor_share=0.0 must lie between 0 and 1"),
        ({"anchor": "subspace", "anchor_share": 1.5}, r"--policy.anchor_share=1.5"),
        ({"anchor": "kronecker"}, r"--policy.anchor=kronecker is unknown: choose of gaussian, subspace"),
        ({"anchor_share": 0.5}, r"--policy.anchor_share changes nothing with --policy.anchor=gaussian"),
    ],
)
def test_options_out_of_range_are_refused(
    make_config: Callable[..., AegisConfig], options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(AegisError, match=complaint):
        make_config("aegis", **options)


def test_float16_is_refused_where_it_would_lose_the_anchor_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    for anchor in ("gaussian", "subspace"):
        policy = make_policy("aegis", anchor=anchor)
        build_optimizer(policy)
        with torch.autocast("cpu", dtype=torch.float16):
            if anchor == "gaussian":
                with pytest.raises(
                    AegisError, match=r"float16 would round it to nothing.*--policy.dtype=bfloat16"
                ):
                    policy.train()(make_batch())
            else:
                policy.train()(make_batch())[0].backward()
