"""How much the default protects, pinned on the VLM that the package brings, and under another scale of its channels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.anchors.building import build_anchor
from aegis_policy.isolation import DEFAULT_SHARE, LowRankProjector, select_blocks
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample
from aegis_policy.vqa.loss import answer_loss

_BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_of_the_embedded_vlm_the_default_holds_9_of_128_directions_and_36_of_512_and_they_stay(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy(
        "aegis", vlm="embedded", anchor="subspace", anchor_path=None, optimizer_lr_backbone=1.2e-3
    )
    before = {name: layer.weight.detach().clone() for name, layer in policy.vlm.linear_layers.items()}
    optimizer = build_optimizer(policy)
    (projector,) = policy.protection.projectors
    assert isinstance(projector, LowRankProjector)
    names = {id(layer.weight): name for name, layer in policy.vlm.linear_layers.items()}
    assert len(projector.blocks) == 7 * 4, "every linear layer of four decoder layers"
    for seed in range(2):
        training_step(policy, optimizer, make_batch(size=2, seed=seed))
    policy.eval()  # what leaves training is held
    for weight, block in projector.blocks:
        name = names[id(weight)]
        assert tuple(block.shape) in ((128, 9), (512, 36)), name
        moved = weight.detach() - before[name]
        assert (moved @ block).norm() < 1e-3 * moved.norm(), name


def _questions() -> list[VQAExample]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8)
    return [VQAExample(picture, "what colour is the cube", "red") for picture in pictures]


def _held(vlm: VLMBackbone) -> tuple[dict[str, int], Tensor]:
    """How many directions of each decoder layer's inputs the default protects, and which share of the answers' gradient
    lies along them."""
    vlm.requires_grad_(True)
    prefix = vlm.family.decoder_layers
    anchor = build_anchor(vlm, iter(_questions()), kinds=["subspace"], source="noise", batch_size=8)
    factors = {name: each for name, each in anchor.factors.items() if name.startswith(prefix)}
    blocks = select_blocks(factors, DEFAULT_SHARE)
    weights = [vlm.linear_layers[name].weight for name in blocks]
    gradients = torch.autograd.grad(answer_loss(vlm, _questions()), weights)
    shares = [
        (gradient @ block).square().sum() / gradient.square().sum()
        for gradient, block in zip(gradients, blocks.values(), strict=True)
    ]
    return {name: block.shape[1] for name, block in blocks.items()}, torch.stack(shares).mean()


def test_a_network_in_other_numbers_is_protected_as_much(
    tiny_vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One direction dominates every layer then: by a share of energy, it alone would be protected."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    from _rescaling import rescale_

    plain, scaled = (VLMBackbone.from_pretrained(tiny_vlm_dir) for _ in range(2))
    rescale_(scaled.decoder_layers)
    with torch.no_grad():
        losses = [answer_loss(vlm, _questions()) for vlm in (plain, scaled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    (directions, held), (directions_scaled, held_scaled) = _held(plain), _held(scaled)
    assert directions_scaled == directions
    assert held_scaled > held - 0.15
