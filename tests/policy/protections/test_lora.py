"""Adapters outside the leading input directions of their layers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.anchors.checks import check_anchor
from aegis_policy.isolation import LowRankProjector, select_blocks
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone


def _first_matrices(policy: AegisPolicy) -> dict[str, torch.Tensor]:
    end = ".lora_A.default.weight"
    return {
        name.removesuffix(end): p.detach().clone()
        for name, p in policy.vlm.model.named_parameters()
        if name.endswith(end)
    }


def _inside(policy: AegisPolicy, share: float) -> float:
    """How much of an adapter's first matrix lies in the leading directions, the most of all."""
    assert policy.anchor is not None
    blocks = select_blocks(policy.anchor.factors, share)
    return max(
        float((matrix @ blocks[name]).norm() / matrix.norm())
        for name, matrix in _first_matrices(policy).items()
    )


def test_adapters_start_and_stay_outside_the_leading_directions_and_go_on_from_a_checkpoint(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_anchor: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"anchor_path": tiny_anchor, "anchor_share": 0.3, "optimizer_lr_backbone": 1e-2}
    policy = make_policy("lora", lora_null_space=True, **options)
    assert _inside(policy, 0.3) > 0.1
    optimizer = build_optimizer(policy)
    assert _inside(policy, 0.3) < 1e-6
    before = _first_matrices(policy)
    for seed in range(3):
        training_step(policy, optimizer, make_batch(seed=seed))
    policy.save_pretrained(tmp_path)
    assert _inside(policy, 0.3) < 1e-6
    assert all(not torch.equal(matrix, before[name]) for name, matrix in _first_matrices(policy).items())

    resumed = AegisPolicy.from_pretrained(tmp_path).train()
    (projector,) = resumed.get_optim_params().projectors
    assert isinstance(projector, LowRankProjector) and len(projector.blocks) == len(before)
    optimizer = build_optimizer(resumed)
    for seed in range(3):
        training_step(resumed, optimizer, make_batch(seed=seed))
    resumed.eval()
    assert _inside(resumed, 0.3) < 1e-6


def test_the_anchor_is_checked_for_the_layers_that_have_adapters(
    make_policy: MakePolicy, tiny_anchor: Path, tiny_vlm_dir: Path
) -> None:
    policy = make_policy("lora", lora_null_space=True, anchor_path=tiny_anchor)
    found = list(check_anchor(tiny_anchor, VLMBackbone.from_pretrained(tiny_vlm_dir), policy.protection))
    assert not [each for each in found if each.status == "error"]
    assert any("of a layer's input directions" in each.what for each in found)


def test_without_an_anchor_nothing_can_be_outside_it(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match=r"--policy.protection=lora needs the anchor"):
        make_policy("lora", lora_null_space=True)


def test_an_anchor_means_nothing_to_plain_adapters(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match=r"--policy.anchor_share.* with --policy.lora_null_space=false"):
        make_policy("lora", anchor_share=0.5)
