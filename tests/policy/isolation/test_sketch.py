"""The streamed spectrum against the eigendecomposition of the covariance itself."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aegis_policy.isolation import CovarianceSketch

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
    weighted.update(x_ND, 1.0 + (torch.arange(N) < 100))
    torch.testing.assert_close(twice.spectrum().values_K[:5], weighted.spectrum().values_K[:5])


def test_a_row_of_weight_zero_does_not_exist():
    x_ND = rows()
    sketch = CovarianceSketch(D, 10)
    sketch.update(torch.cat([x_ND, 100 * torch.ones(3, D)]), torch.cat([torch.ones(N), torch.zeros(3)]))
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
    sketch.update(
        torch.cat([x_ND, torch.full((3, D), torch.nan)]), torch.cat([torch.ones(N), torch.zeros(3)])
    )
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
    width, rank = 2_048, 8
    with _Largest() as largest:
        sketch = CovarianceSketch(width, rank)
        sketch.update(torch.randn(100, width))
        spectrum = sketch.spectrum()
    assert spectrum.vectors_DK.shape == (width, rank)
    assert largest.elements == width * 100, "the rows themselves are the largest"
