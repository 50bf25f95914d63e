"""The streamed spectrum against the eigendecomposition of the covariance itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aegis_policy.isolation import CovarianceSketch, EveryRow, thinned
from aegis_policy.isolation._rows import WeightedRows

D, N = 40, 300


def rows(decay: float = 0.7) -> torch.Tensor:
    """Correlated rows whose covariance has a falling spectrum."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    return torch.randn(N, D, generator=generator) * decay ** torch.arange(D) @ basis.T


def sketched(x_ND: torch.Tensor, rank: int, batch: int = 64) -> CovarianceSketch:
    sketch = CovarianceSketch(D, rank)
    for part in x_ND.split(batch):
        sketch.update(part)
    return sketch


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sketch is thin, as that of a very wide layer."""
    monkeypatch.setattr("aegis_policy.isolation._sketch.WHOLE_WIDTH", 0)


@pytest.mark.parametrize("rank", [5, 10, 20, D, 2 * D])
def test_the_leading_eigenpairs_are_those_of_the_covariance(rank):
    x_ND = rows()
    spectrum = sketched(x_ND, rank).spectrum()
    values, vectors = torch.linalg.eigh(x_ND.T.double() @ x_ND.double())
    values, vectors = values.flip(0), vectors.flip(1)
    leading = min(rank // 2, 5)
    kept = spectrum.vectors_DK.shape[1]
    assert leading <= kept <= min(rank, D)
    torch.testing.assert_close(spectrum.values_K[:leading].double(), values[:leading], rtol=2e-3, atol=0)
    cosines = (spectrum.vectors_DK[:, :leading].double() * vectors[:, :leading]).sum(0).abs()
    assert cosines.min() > 0.999
    torch.testing.assert_close(spectrum.total.double(), values.sum(), rtol=1e-5, atol=0)
    identity = spectrum.vectors_DK.T @ spectrum.vectors_DK
    torch.testing.assert_close(identity, torch.eye(kept), rtol=0, atol=1e-4)


def spiked() -> torch.Tensor:
    """Three strong directions above a flat floor."""
    x_ND = rows(decay=1.0)
    strong_DK = torch.linalg.qr(torch.randn(D, 3, generator=torch.Generator().manual_seed(3))).Q
    return x_ND + 9 * (x_ND @ strong_DK) @ strong_DK.T


SLOW = {"falling slowly": lambda: rows(0.97), "flat": lambda: rows(1.0), "spiked": spiked}


@pytest.mark.parametrize("rank", [5, 10, 15])
@pytest.mark.parametrize("name", SLOW)
def test_a_slow_spectrum_is_never_overstated_and_missed_by_no_more_than_the_tail(name, rank, thin):
    """Nystrom's approximation lies below the covariance, and a sketch of S columns misses on average no more than
    (1 + r / (S - r - 1)) times what the best approximation of any rank r < S - 1 does (Halko et al., Tropp et al.)."""
    x_ND = SLOW[name]()
    spectrum = sketched(x_ND, rank).spectrum()
    covariance_DD = x_ND.T.double() @ x_ND.double()
    values_D = torch.linalg.eigvalsh(covariance_DD).flip(0)
    vectors_DK, values_K = spectrum.vectors_DK.double(), spectrum.values_K.double()

    assert (values_K <= values_D[:rank] * (1 + 1e-5)).all()
    along_K = (vectors_DK * (covariance_DD @ vectors_DK)).sum(0)
    assert (values_K <= along_K * (1 + 1e-5)).all(), "a direction holds at least what it is said to hold"
    torch.testing.assert_close(spectrum.total.double(), values_D.sum(), rtol=1e-5, atol=0)
    torch.testing.assert_close(
        spectrum.vectors_DK.T @ spectrum.vectors_DK, torch.eye(rank), rtol=0, atol=1e-4
    )

    size = rank + 8
    missed = min((1 + r / (size - r - 1)) * float(values_D[r:].sum()) for r in range(size - 1))
    beyond = float(values_D[rank:size].sum())  # the sketch approximates them too, and they are not kept
    assert float(values_D.sum() - values_K.sum()) <= missed + beyond


def test_strong_directions_are_found_above_a_flat_floor():
    x_ND = spiked()
    spectrum = sketched(x_ND, 10).spectrum()
    values, vectors = torch.linalg.eigh(x_ND.T.double() @ x_ND.double())
    torch.testing.assert_close(spectrum.values_K[:3].double(), values.flip(0)[:3], rtol=0.02, atol=0)
    found = spectrum.vectors_DK[:, :3].double().T @ vectors.flip(1)[:, :3]
    assert torch.linalg.svdvals(found).min() > 0.99, "the same three-dimensional space"


def test_of_a_flat_spectrum_the_kept_share_is_told_for_what_it_is():
    """A tenth of the directions holds about a tenth of the energy."""
    x_ND = rows(decay=1.0)
    spectrum = sketched(x_ND, 4).spectrum()
    values = torch.linalg.eigvalsh(x_ND.T.double() @ x_ND.double())
    held = float(spectrum.values_K.sum() / spectrum.total)
    assert held <= float(values.flip(0)[:4].sum() / values.sum())
    assert held > 0.1


def test_a_narrow_covariance_is_exact_and_keeps_its_whole_trace():
    x_ND = rows(decay=0.95)
    spectrum = sketched(x_ND, D).spectrum()
    rebuilt = spectrum.vectors_DK * spectrum.values_K @ spectrum.vectors_DK.T
    torch.testing.assert_close(rebuilt, x_ND.T @ x_ND, rtol=0, atol=1e-4 * float(spectrum.total))
    torch.testing.assert_close(spectrum.values_K.sum(), spectrum.total, rtol=1e-4, atol=0)


def test_neither_order_nor_batches_matter_and_weights_count_rows():
    x_ND = rows()
    one = sketched(x_ND, 10).spectrum()
    other = sketched(x_ND.flip(0), 10, batch=7).spectrum()
    torch.testing.assert_close(one.values_K[:5], other.values_K[:5])
    twice, weighted = CovarianceSketch(D, 10), CovarianceSketch(D, 10)
    twice.update(torch.cat([x_ND, x_ND[:100]]))
    weighted.update(x_ND, WeightedRows.by(1.0 + (torch.arange(N) < 100)))
    torch.testing.assert_close(twice.spectrum().values_K[:5], weighted.spectrum().values_K[:5])


def test_a_row_of_weight_zero_does_not_exist():
    x_ND = rows()
    sketch = CovarianceSketch(D, 10)
    weights = WeightedRows.by(torch.cat([torch.ones(N), torch.zeros(3)]))
    sketch.update(torch.cat([x_ND, 100 * torch.ones(3, D)]), weights)
    torch.testing.assert_close(sketch.spectrum().total, sketched(x_ND, 10).spectrum().total)


def test_a_stream_continues_from_its_state():
    x_ND = rows()
    first, second = CovarianceSketch(D, 10), CovarianceSketch(D, 10)
    first.update(x_ND[:100])
    second.load_state(first.state())
    second.update(x_ND[100:])
    torch.testing.assert_close(second.spectrum().values_K[:5], sketched(x_ND, 10).spectrum().values_K[:5])


def test_no_row_or_only_zeros_have_no_spectrum():
    sketch = CovarianceSketch(D, 4)
    with pytest.raises(ValueError, match="no row that is not zero"):
        sketch.spectrum()
    sketch.update(torch.zeros(3, D))
    with pytest.raises(ValueError, match="no row that is not zero"):
        sketch.spectrum()


def test_rows_in_few_directions_have_as_few_eigenpairs():
    x_ND = torch.ones(50, 1) * torch.randn(D, generator=torch.Generator().manual_seed(1))
    for rank in (4, D):
        spectrum = sketched(x_ND, rank).spectrum()
        assert spectrum.vectors_DK.shape == (D, 1)
        torch.testing.assert_close(spectrum.values_K[0], x_ND.square().sum(), rtol=1e-4, atol=0)


def test_what_a_row_of_weight_zero_holds_never_spreads():
    x_ND = rows()
    sketch = CovarianceSketch(D, 10)
    weights = WeightedRows.by(torch.cat([torch.ones(N), torch.zeros(3)]))
    sketch.update(torch.cat([x_ND, torch.full((3, D), torch.nan)]), weights)
    torch.testing.assert_close(sketch.spectrum().total, sketched(x_ND, 10).spectrum().total)
    assert sketch.weight == N


def test_values_that_are_not_finite_are_named():
    sketch = CovarianceSketch(D, 4)
    sketch.update(torch.full((3, D), torch.inf))
    with pytest.raises(ValueError, match="not finite"):
        sketch.spectrum()


class _Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


def test_a_wide_layer_never_holds_a_square_matrix():
    """One of 9,216 inputs, as PaliGemma 2's, with a share of its directions."""
    width, rank, rows_at_once = 9_216, 40, 260
    with _Largest() as largest:
        sketch = CovarianceSketch(width, rank)
        for _ in range(2):
            sketch.update(torch.randn(rows_at_once, width))
        spectrum = sketch.spectrum()
    assert spectrum.vectors_DK.shape == (width, rank)
    assert largest.elements == width * rows_at_once, "the rows themselves are the largest"
    held = sum(x.numel() * x.element_size() for x in sketch.state().values())
    assert held <= 12 * width * (rank + rank // 4) + 1024


def spectrum_like(power: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose covariance's eigenvalues fall like k^-power, and that covariance."""
    generator = torch.Generator().manual_seed(0)
    width = 192
    basis_DD = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    deviation_D = torch.arange(1, width + 1.0) ** (-power / 2)
    x_ND = torch.randn(8_000, width, generator=generator) * deviation_D @ basis_DD.T
    return x_ND, x_ND.double().T @ x_ND.double()


@pytest.mark.parametrize(("power", "least"), [(0.5, 0.93), (1.0, 0.98), (3.0, 0.9999)])
def test_a_thin_sketch_finds_nearly_the_best_directions_of_a_long_stream(power, least, thin):
    """A single look through a random matrix finds 81 % (power 0.5) and 95 % (1.0) of what the best directions hold."""
    x_ND, covariance_DD = spectrum_like(power)
    rank = 32
    sketch = CovarianceSketch(len(covariance_DD), rank)
    for part in x_ND.split(500):
        sketch.update(part)
    found_DK = sketch.spectrum().vectors_DK.double()
    best = torch.linalg.eigvalsh(covariance_DD)[-rank:].sum()
    assert float(torch.trace(found_DK.T @ covariance_DD @ found_DK) / best) > least


def test_rows_that_wait_for_others_are_in_the_state():
    x_ND = rows()
    first, second = CovarianceSketch(D, 10), CovarianceSketch(D, 10)
    for part in x_ND.split(7):
        first.update(part)
        second.load_state(first.state())
        second, first = first, second
    assert first.weight == N
    torch.testing.assert_close(first.spectrum().values_K, sketched(x_ND, 10).spectrum().values_K)


def test_a_row_that_is_taken_for_others_counts_for_them():
    x_ND = rows().repeat_interleave(5, 0)
    every, all_ = CovarianceSketch(D, 10), CovarianceSketch(D, 10)
    every.update(x_ND, EveryRow(5, 2))
    all_.update(x_ND)
    assert every.weight == all_.weight == 5 * N
    torch.testing.assert_close(every.spectrum().values_K, all_.spectrum().values_K, rtol=1e-4, atol=0)


def test_thinning_leaves_other_tokens_and_padding_as_they_are():
    mask_BT = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    is_image_BT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    found_BT = thinned(mask_BT, is_image_BT, EveryRow(3, 1))
    assert found_BT.tolist() == [[0, 0, 3, 0, 1, 1], [0, 3, 0, 1, 1, 1]]


@pytest.mark.parametrize("along", ["one input", "all inputs"])
@pytest.mark.parametrize("length", [1e4, 1e6])
def test_an_attention_sink_hides_no_direction_of_the_rest(along, length):
    x_ND = rows(decay=0.95)
    sink_D = torch.eye(D)[3] if along == "one input" else torch.full((D,), D**-0.5)
    x_ND[::50] += length * sink_D
    spectrum = sketched(x_ND, D).spectrum()
    covariance_DD = x_ND.double().T @ x_ND.double()
    values_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    assert len(spectrum.values_K) == D
    torch.testing.assert_close(spectrum.values_K.double(), values_D.flip(0), rtol=1e-3, atol=0)
    overlap = (spectrum.vectors_DK[:, :5].double().T @ vectors_DD.flip(1)[:, :5]).square().sum()
    assert float(overlap) == pytest.approx(5, abs=1e-3)
