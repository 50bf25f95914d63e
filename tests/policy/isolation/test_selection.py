"""Which part of each weight the two rules block: a share of the input directions, a share of the Fisher weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.isolation import (
    DEFAULT_SHARE,
    LinearFactors,
    Spectrum,
    direction_count,
    select_blocks,
    select_components,
)

E = 12


def spectrum(width: int, kept: int, decay: float = 0.8, seed: int = 0) -> Spectrum:
    """Leading eigenpairs of a covariance whose eigenvalues fall by a factor."""
    vectors = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    values = decay ** torch.arange(width)
    return Spectrum(values[:kept], vectors[:, :kept], values.sum())


def factors(outputs: bool = False) -> dict[str, LinearFactors]:
    """Of three layers that differ in width and in how their spectra fall."""
    layers = {}
    for name, width, decay in (("narrow", 8, 0.9), ("wide", 40, 0.8), ("peaked", 20, 0.1)):
        of_outputs = spectrum(E, E, 0.97 * decay, seed=width + 1).scaled(1 + 1 / width)
        layers[name] = LinearFactors(
            spectrum(width, width, decay, seed=width), of_outputs if outputs else None
        )
    return layers


@pytest.mark.parametrize("share", [0.01, DEFAULT_SHARE, 0.5, 1.0])
def test_blocked_are_the_leading_directions_as_many_as_the_share_whatever_their_energy(share):
    layers = factors()
    blocks = select_blocks(layers, share)
    for name, (inputs, *_) in layers.items():
        wanted = max(1, round(share * len(inputs.vectors_DK)))
        assert blocks[name].directions == direction_count(len(inputs.vectors_DK), share) == wanted
        assert blocks[name].output_vectors_EJ is None and blocks[name].mask_JK is None
        inside = blocks[name].input_vectors_DK.T @ inputs.vectors_DK
        torch.testing.assert_close(inside[:, :wanted].norm(dim=0), torch.ones(wanted))
        torch.testing.assert_close(
            inside[:, wanted:], torch.zeros_like(inside[:, wanted:]), rtol=0, atol=1e-5
        )


def test_the_default_share_is_this_one():
    """What users of real models rely on without naming it: changing it is a decision, and an entry of the changelog."""
    assert DEFAULT_SHARE == 0.17
    assert [direction_count(width, DEFAULT_SHARE) for width in (1, 64, 576, 1536, 9216)] == [
        1,
        11,
        98,
        261,
        1567,
    ]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0.001, 1.0), st.data())
def test_an_anchor_that_keeps_fewer_directions_gives_all_that_it_has(width, share, data):
    kept = data.draw(st.integers(1, width))
    block = select_blocks({"layer": LinearFactors(spectrum(width, kept))}, share)["layer"]
    assert block.directions == min(kept, direction_count(width, share))


def test_layers_that_read_the_same_input_share_one_tensor_of_directions():
    shared = spectrum(20, 10)
    blocks = select_blocks(
        {"q": LinearFactors(shared), "k": LinearFactors(shared), "o": LinearFactors(spectrum(20, 10))}, 0.3
    )
    assert blocks["q"].input_vectors_DK is blocks["k"].input_vectors_DK
    assert blocks["q"].input_vectors_DK is not blocks["o"].input_vectors_DK


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        select_blocks(factors(), share)


@pytest.mark.parametrize("energy", [0.3, 0.8, 0.95])
def test_blocked_are_the_heaviest_components_of_all_layers_that_hold_the_energy(energy):
    layers = factors(outputs=True)
    blocks = select_components(layers, energy)
    weights = {
        name: torch.outer(each.outputs.values_K, each.inputs.values_K) for name, each in layers.items()
    }
    total = sum(float(weight.sum()) for weight in weights.values())
    heaviest = torch.cat([weight.flatten() for weight in weights.values()]).sort(descending=True).values
    blocked = {name: int(blocks[name].mask_JK.sum()) if name in blocks else 0 for name in layers}
    count = sum(blocked.values())
    assert heaviest[:count].sum() >= energy * total * (1 - 1e-5)
    assert heaviest[: count - 1].sum() < energy * total
    for name, weight in weights.items():
        assert blocked[name] == int((weight >= heaviest[count - 1]).sum())
        if name in blocks:
            mask = blocks[name].mask_JK
            assert mask.any(0).all() and mask.any(1).all(), "no direction is kept for nothing"
            assert torch.equal(mask, (weight >= heaviest[count - 1])[: mask.shape[0], : mask.shape[1]])


@pytest.mark.parametrize("energy", [0.0, 1.1])
def test_an_energy_out_of_range_is_refused(energy):
    with pytest.raises(ValueError, match="between 0 and 1"):
        select_components(factors(outputs=True), energy)


def test_eigenpairs_that_hold_too_little_fisher_weight_are_refused():
    few = {"layer": LinearFactors(spectrum(20, 2), spectrum(E, 2))}
    with pytest.raises(ValueError, match=r"hold \d.*less than the 99\.9%"):
        select_components(few, 0.999)


def test_missing_output_factors_are_named():
    with pytest.raises(ValueError, match="no output factor of narrow"):
        select_components(factors(), 0.9)
