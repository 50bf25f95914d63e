"""Blocks of tied layers: one weight, under two names, blocked for both of its uses."""

import pytest
import torch
from torch import nn

from aegis_policy.isolation import LowRankProjector, ProjectedAdamW, ProjectedStep

D, E, K = 12, 10, 4


def directions(near: torch.Tensor | None = None) -> torch.Tensor:
    """Orthonormal columns; if others are given, up to about a hundredth from those."""
    columns = torch.randn(D, K)
    return torch.linalg.qr(columns if near is None else near + 1e-2 * columns).Q


def sets(seed: int) -> list[list[torch.Tensor]]:
    """Blocks of one weight, of every kind."""
    torch.manual_seed(seed)
    one, two, three = directions(), directions(), directions()[:, :2]
    return [[one, two], [one, directions(near=one)], [one, one], [one, two, three]]


KINDS = ["two", "nearly the same", "the same", "three"]


def tied(blocks: list[torch.Tensor]) -> tuple[nn.Linear, LowRankProjector]:
    layers = {str(index): nn.Linear(D, E, bias=False) for index in range(len(blocks))}
    for layer in layers.values():
        layer.weight = layers["0"].weight
    return layers["0"], LowRankProjector(layers, {str(index): block for index, block in enumerate(blocks)})


def hold_beside(projector: LowRankProjector, step_ED: torch.Tensor) -> None:
    """Have the projector hold what moves by a step beside it."""
    (weight,) = projector.protected
    projector.remember()
    with torch.no_grad():
        weight += step_ED
    projector.hold_()


def left_of(step_ED: torch.Tensor, blocks: list[torch.Tensor]) -> torch.Tensor:
    """What may stay of a step, in float64: nothing along the span of all directions."""
    left, values, _ = torch.linalg.svd(torch.cat(blocks, 1).double(), full_matrices=False)
    span_DK = left[:, values > 1e-6]
    return step_ED.double() - step_ED.double() @ span_DK @ span_DK.T


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_tied_weight_loses_the_union_of_its_blocks_and_no_more(kind, seed):
    blocks = sets(seed)[kind]
    layer, projector = tied(blocks)
    assert [weight for weight, _ in projector.blocks] == projector.protected == [layer.weight]
    step, before = torch.randn(E, D), layer.weight.detach().clone()
    hold_beside(projector, step)
    expected = left_of(step, blocks)
    torch.testing.assert_close((layer.weight - before).double(), expected, rtol=0, atol=1e-4)
    shed = (step.double() - expected).square().sum() / step.double().square().sum()
    assert projector.metrics()["blocked_energy"] == pytest.approx(float(shed), rel=1e-3)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_no_direction_of_either_use_moves_in_training(kind):
    blocks = sets(0)[kind]
    layer, projector = tied(blocks)
    before = layer.weight.detach().clone()
    optimizer = ProjectedAdamW([layer.weight], projector, lr=1e-2, weight_decay=0.1)
    for seed in range(10):
        torch.manual_seed(seed)
        optimizer.zero_grad()
        (layer(torch.randn(20, D)) - torch.randn(20, E)).square().mean().backward()
        optimizer.step()
    moved = layer.weight.detach() - before
    assert moved.norm() > 1e-2
    for block in blocks:
        assert (moved @ block).norm() < 1e-4 * moved.norm()


def test_the_order_of_the_uses_does_not_matter():
    for blocks in sets(1):
        results = []
        for ordered in (blocks, blocks[::-1]):
            layer, projector = tied(ordered)
            torch.manual_seed(2)
            before = layer.weight.detach().clone()
            hold_beside(projector, torch.randn(E, D))
            results.append(layer.weight.detach() - before)
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_two_uses_are_one_block_of_all_their_directions():
    for blocks, count in zip(sets(0), (2 * K, 2 * K, K, 2 * K + 2), strict=True):
        _, projector = tied(blocks)
        ((_, block),) = projector.blocks
        assert block.shape == (D, count)
        torch.testing.assert_close(block.T @ block, torch.eye(count), rtol=0, atol=1e-5)


class ProjectedDescent(ProjectedStep, torch.optim.SGD):
    """Plain gradient steps."""


def test_the_master_of_a_tied_weight_in_bfloat16_is_held_in_float32():
    torch.manual_seed(0)
    blocks = [directions(), directions()]
    layer, projector = tied(blocks)
    layer.weight.data = layer.weight.data.bfloat16()
    before, step = layer.weight.detach().float(), torch.randn(E, D).bfloat16()
    optimizer = ProjectedDescent([layer.weight], projector, lr=1.0, momentum=0.9)
    layer.weight.grad = -step
    optimizer.step()
    moved = optimizer.state[layer.weight]["master"] - before
    torch.testing.assert_close(moved.double(), left_of(step.float(), blocks), rtol=0, atol=1e-4)


def test_a_layer_with_a_weight_of_its_own_keeps_its_block_as_it_is():
    torch.manual_seed(0)
    block = directions()
    layers = {"own": nn.Linear(D, E), "other": nn.Linear(D, E)}
    projector = LowRankProjector(layers, {"own": block, "other": directions()})
    assert projector.blocks[0][1] is block


@pytest.mark.parametrize("share", [lambda w: w, lambda w: w.T, lambda w: w[2:], lambda w: w[:, 1:]])
def test_two_parameters_in_one_memory_are_refused(share):
    first = nn.Linear(D, D, bias=False)
    other = nn.Linear(1, 1, bias=False)
    other.weight = nn.Parameter(share(first.weight.detach()))
    block = directions()
    with pytest.raises(
        ValueError, match=r"weights of .* and .* lie in the same memory and are two parameters"
    ):
        LowRankProjector({"first": first, "other": other}, {"first": block})


def test_neighbours_in_one_storage_are_no_tied_weights():
    both = torch.randn(2, D, D)
    layers = {name: nn.Linear(D, D, bias=False) for name in "ab"}
    for layer, values in zip(layers.values(), both, strict=True):
        layer.weight = nn.Parameter(values)
    LowRankProjector(layers, {"a": directions(), "b": directions()})


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal]
)
def test_a_weight_that_is_computed_from_others_is_refused(wrap):
    layer = wrap(nn.Linear(D, D, bias=False))
    with pytest.raises(ValueError, match="weight of up is computed from other parameters"):
        LowRankProjector({"up": layer}, {"up": directions()})
