"""Which part of each weight is blocked: a share of the input directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_policy.isolation import DEFAULT_SHARE, LinearFactors, Spectrum, direction_count, select_blocks


def spectrum(width: int, kept: int, decay: float = 0.8, seed: int = 0) -> Spectrum:
    """Leading eigenpairs of a covariance whose eigenvalues fall by a factor."""
    vectors = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed))).Q
    values = decay ** torch.arange(width)
    return Spectrum(values[:kept], vectors[:, :kept], values.sum())


def factors() -> dict[str, LinearFactors]:
    """Of three layers that differ in width and in how their spectra fall."""
    return {
        name: LinearFactors(spectrum(width, width, decay, seed=width))
        for name, width, decay in (("narrow", 8, 0.9), ("wide", 40, 0.8), ("peaked", 20, 0.1))
    }


@pytest.mark.parametrize("share", [0.01, DEFAULT_SHARE, 0.5, 1.0])
def test_blocked_are_the_leading_directions_as_many_as_the_share_whatever_their_energy(share):
    layers = factors()
    blocks = select_blocks(layers, share)
    for name, (inputs, _) in layers.items():
        wanted = max(1, round(share * len(inputs.vectors_DK)))
        assert blocks[name].shape[1] == direction_count(len(inputs.vectors_DK), share) == wanted
        inside = blocks[name].T @ inputs.vectors_DK
        torch.testing.assert_close(inside[:, :wanted].norm(dim=0), torch.ones(wanted))
        torch.testing.assert_close(
            inside[:, wanted:], torch.zeros_like(inside[:, wanted:]), rtol=0, atol=1e-5
        )


def test_the_default_share_is_this_one():
    """What users of real models rely on without naming it: changing it is a decision, and an entry of the changelog."""
    assert DEFAULT_SHARE == 0.07
    assert [direction_count(width, DEFAULT_SHARE) for width in (1, 64, 576, 1536, 9216)] == [
        1,
        4,
        40,
        108,
        645,
    ]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.floats(0.001, 1.0), st.data())
def test_an_anchor_that_keeps_fewer_directions_gives_all_that_it_has(width, share, data):
    kept = data.draw(st.integers(1, width))
    block = select_blocks({"layer": LinearFactors(spectrum(width, kept))}, share)["layer"]
    assert block.shape[1] == min(kept, direction_count(width, share))


def test_layers_that_read_the_same_input_share_one_tensor_of_directions():
    shared = spectrum(20, 10)
    blocks = select_blocks(
        {"q": LinearFactors(shared), "k": LinearFactors(shared), "o": LinearFactors(spectrum(20, 10))}, 0.3
    )
    assert blocks["q"] is blocks["k"]
    assert blocks["q"] is not blocks["o"]


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        select_blocks(factors(), share)
