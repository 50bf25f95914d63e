"""Blocks of tied layers: one weight, under two names, blocked for both of its uses."""

import pytest
import torch
from torch import nn

from aegis_policy.isolation import (
    BlockedComponents,
    JoinedComponents,
    LowRankProjector,
    ProjectedAdamW,
    ProjectedStep,
)

D, E, K, J = 12, 10, 4, 3
STAIRCASE_JK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
"""Which components a Kronecker block holds: the heaviest lie towards the leading directions."""


def directions(width: int, count: int, near: torch.Tensor | None = None, way: float = 1.0) -> torch.Tensor:
    """Orthonormal columns; `near` others, if given, up to about the angle `way`."""
    columns = torch.randn(width, count) * way
    return torch.linalg.qr(columns if near is None else near + columns).Q


def whole_inputs() -> BlockedComponents:
    return BlockedComponents(directions(D, K))


def kronecker() -> BlockedComponents:
    return BlockedComponents(directions(D, K), directions(E, J), STAIRCASE_JK)


def pairs(seed: int) -> list[list[BlockedComponents]]:
    """Two blocks of every kind."""
    torch.manual_seed(seed)
    near = kronecker()
    return [
        [whole_inputs(), whole_inputs()],
        [kronecker(), kronecker()],
        [kronecker(), whole_inputs()],
        [near, near._replace(input_vectors_DK=directions(D, K, near.input_vectors_DK, 1e-2))],
        [near, near],
        [kronecker(), kronecker(), whole_inputs()],
    ]


KINDS = [
    "inputs",
    "kronecker",
    "kronecker and inputs",
    "nearly the same",
    "the same",
    "three",
]


def tied(blocks: list[BlockedComponents]) -> tuple[nn.Linear, LowRankProjector]:
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


def left_of(step_ED: torch.Tensor, blocks: list[BlockedComponents]) -> torch.Tensor:
    """What may stay of a step, dense and in float64: nothing of the span of all blocked components."""
    blocked = []
    for block in blocks:
        U_DK = block.input_vectors_DK.double()
        V_EJ = torch.eye(E).double() if block.output_vectors_EJ is None else block.output_vectors_EJ.double()
        components = torch.einsum("ej,dk->jked", V_EJ, U_DK).flatten(2)
        blocked.append(components.flatten(0, 1) if block.mask_JK is None else components[block.mask_JK])
    _, values, right = torch.linalg.svd(torch.cat(blocked), full_matrices=False)
    span = right[values > 1e-6]
    step = step_ED.double().flatten()
    return (step - span.T @ (span @ step)).view(E, D)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_a_tied_weight_loses_the_union_of_its_blocks_and_no_more(kind, seed):
    blocks = pairs(seed)[kind]
    layer, projector = tied(blocks)
    assert [weight for weight, _ in projector.blocks] == projector.protected == [layer.weight]
    step, before = torch.randn(E, D), layer.weight.detach().clone()
    hold_beside(projector, step)
    expected = left_of(step, blocks)
    torch.testing.assert_close((layer.weight - before).double(), expected, rtol=0, atol=1e-4)
    shed = (step.double() - expected).square().sum() / step.double().square().sum()
    assert projector.metrics()["blocked_energy"] == pytest.approx(float(shed), rel=1e-3)


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
def test_no_component_of_either_use_moves_in_training(kind):
    blocks = pairs(0)[kind]
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
        assert block.coefficients(moved).norm() < 1e-4 * moved.norm()


def test_the_order_of_the_uses_does_not_matter():
    for blocks in pairs(1):
        results = []
        for ordered in (blocks, blocks[::-1]):
            layer, projector = tied(ordered)
            torch.manual_seed(2)
            before = layer.weight.detach().clone()
            hold_beside(projector, torch.randn(E, D))
            results.append(layer.weight.detach() - before)
        torch.testing.assert_close(*results, rtol=0, atol=1e-5)


def test_two_uses_of_whole_input_directions_are_one_block_of_them():
    torch.manual_seed(0)
    _, projector = tied([whole_inputs(), whole_inputs()])
    ((_, block),) = projector.blocks
    assert isinstance(block, BlockedComponents)
    assert block.input_vectors_DK.shape == (D, 2 * K)
    assert block.mask_JK is None


class ProjectedDescent(ProjectedStep, torch.optim.SGD):
    """Plain gradient steps."""


def test_the_master_of_a_tied_weight_in_bfloat16_is_held_in_float32():
    torch.manual_seed(0)
    blocks = [kronecker(), kronecker()]
    layer, projector = tied(blocks)
    assert isinstance(projector.blocks[0][1], JoinedComponents)
    layer.weight.data = layer.weight.data.bfloat16()
    before, step = layer.weight.detach().float(), torch.randn(E, D).bfloat16()
    optimizer = ProjectedDescent([layer.weight], projector, lr=1.0, momentum=0.9)
    layer.weight.grad = -step
    optimizer.step()
    moved = optimizer.state[layer.weight]["master"] - before
    torch.testing.assert_close(moved.double(), left_of(step.float(), blocks), rtol=0, atol=1e-4)


def test_a_layer_with_a_weight_of_its_own_keeps_its_block_as_it_is():
    torch.manual_seed(0)
    block = kronecker()
    layers = {"own": nn.Linear(D, E), "other": nn.Linear(D, E)}
    projector = LowRankProjector(layers, {"own": block, "other": kronecker()})
    assert projector.blocks[0][1] is block


@pytest.mark.parametrize("share", [lambda w: w, lambda w: w.T, lambda w: w[2:], lambda w: w[:, 1:]])
def test_two_parameters_in_one_memory_are_refused(share):
    first = nn.Linear(D, D, bias=False)
    other = nn.Linear(1, 1, bias=False)
    other.weight = nn.Parameter(share(first.weight.detach()))
    block = BlockedComponents(directions(D, K))
    with pytest.raises(
        ValueError, match=r"weights of .* and .* lie in the same memory and are two parameters"
    ):
        LowRankProjector({"first": first, "other": other}, {"first": block})


def test_neighbours_in_one_storage_are_no_tied_weights():
    both = torch.randn(2, D, D)
    layers = {name: nn.Linear(D, D, bias=False) for name in "ab"}
    for layer, values in zip(layers.values(), both, strict=True):
        layer.weight = nn.Parameter(values)
    LowRankProjector(layers, {"a": whole_inputs(), "b": whole_inputs()})


@pytest.mark.parametrize(
    "wrap", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.orthogonal]
)
def test_a_weight_that_is_computed_from_others_is_refused(wrap):
    layer = wrap(nn.Linear(D, D, bias=False))
    with pytest.raises(ValueError, match="weight of up is computed from other parameters"):
        LowRankProjector({"up": layer}, {"up": whole_inputs()})
