import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from aegis_policy.isolation import (
    AnchorError,
    GaussianAnchor,
    MomentAccumulator,
    global_moments,
    masked_moments,
    w2_cotangents,
    w2_squared,
)

L, B, T, D = 2, 3, 5, 4


@pytest.fixture
def hidden():
    torch.manual_seed(0)
    return [torch.randn(B, T, D, dtype=torch.float64, requires_grad=True) for _ in range(L)]


@pytest.fixture
def mask():
    return torch.arange(T) < torch.tensor([5, 2, 3])[:, None]


@pytest.fixture
def moments0():
    torch.manual_seed(1)
    return torch.randn(L, D, dtype=torch.float64), torch.rand(L, D, dtype=torch.float64) + 0.1


def anchor_loss(hidden, mask, moments0):
    return sum(
        w2_squared(*masked_moments(x, mask), mean0, std0)
        for x, mean0, std0 in zip(hidden, *moments0, strict=True)
    )


def test_w2_of_diagonal_gaussians_is_the_full_gaussian_formula():
    rng = np.random.default_rng(0)
    mean, mean0, std, std0 = rng.normal(size=D), rng.normal(size=D), rng.random(D), rng.random(D)
    cov, cov0 = np.diag(std**2), np.diag(std0**2)
    cross = scipy.linalg.sqrtm(scipy.linalg.sqrtm(cov0) @ cov @ scipy.linalg.sqrtm(cov0))
    expected = ((mean - mean0) ** 2).sum() + np.trace(cov + cov0 - 2 * cross.real)
    assert w2_squared(*map(torch.from_numpy, (mean, std, mean0, std0))).item() == pytest.approx(expected)


def test_the_cotangents_are_autograds_through_w2(hidden, mask, moments0):
    expected = torch.autograd.grad(anchor_loss(hidden, mask, moments0), hidden)
    cotangents = w2_cotangents(hidden, mask, global_moments(hidden, mask), *moments0)
    for cotangent, gradient in zip(cotangents, expected, strict=True):
        torch.testing.assert_close(cotangent, gradient, rtol=1e-12, atol=1e-14)
        assert (cotangent[~mask] == 0).all()


def test_the_cotangents_are_finite_differences_of_w2(hidden, mask, moments0):
    cotangents = w2_cotangents(hidden, mask, global_moments(hidden, mask), *moments0)
    step = 1e-5
    with torch.no_grad():
        for x, cotangent in zip(hidden, cotangents, strict=True):
            for index in range(0, x.numel(), 7):
                value = x.view(-1)[index].item()
                x.view(-1)[index] = value + step
                above = anchor_loss(hidden, mask, moments0)
                x.view(-1)[index] = value - step
                below = anchor_loss(hidden, mask, moments0)
                x.view(-1)[index] = value
                assert cotangent.view(-1)[index].item() == pytest.approx(
                    ((above - below) / (2 * step)).item(), rel=1e-6, abs=1e-9
                )


def test_bfloat16_hidden_states_get_bfloat16_cotangents_from_float32_moments(hidden, mask, moments0):
    rounded = [x.detach().bfloat16() for x in hidden]
    mean0, std0 = (each.float() for each in moments0)
    cotangents = w2_cotangents(rounded, mask, global_moments(rounded, mask), mean0, std0)
    exact = [x.double() for x in rounded]
    expected = w2_cotangents(exact, mask, global_moments(exact, mask), mean0.double(), std0.double())
    for cotangent, gradient in zip(cotangents, expected, strict=True):
        assert cotangent.dtype == torch.bfloat16
        torch.testing.assert_close(cotangent.double(), gradient, rtol=2**-8, atol=1e-6)


@pytest.fixture
def anchor():
    torch.manual_seed(2)
    metadata = {"vlm": "toy", "fingerprint": "abc", "samples": "12", "source": "tests"}
    return GaussianAnchor(torch.randn(L, D), torch.rand(L, D), count=345, metadata=metadata)


def test_an_anchor_comes_back_from_its_file_exactly(anchor, tmp_path):
    path = tmp_path / "new" / "anchor.safetensors"
    anchor.save(path)
    loaded = GaussianAnchor.load(path)
    assert torch.equal(loaded.mean_LD, anchor.mean_LD)
    assert torch.equal(loaded.std_LD, anchor.std_LD)
    assert loaded.count == 345
    assert loaded.metadata == anchor.metadata | {"kind": "gaussian", "format_version": "1", "tokens": "345"}
    assert [each.name for each in path.parent.iterdir()] == ["anchor.safetensors"]


def test_a_failed_save_leaves_the_old_anchor_and_nothing_beside_it(anchor, tmp_path, monkeypatch):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("aegis_policy.isolation._gaussian.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        anchor.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_anchor_is_made_from_one_accumulator_a_layer(hidden, mask):
    accumulators = [MomentAccumulator() for _ in hidden]
    for accumulator, x in zip(accumulators, hidden, strict=True):
        accumulator.update(x, mask)
    anchor = GaussianAnchor.from_accumulators(accumulators, {"vlm": "toy"})
    moments = global_moments(hidden, mask)
    assert (anchor.num_layers, anchor.hidden_size, anchor.count) == (L, D, int(mask.sum()))
    torch.testing.assert_close(anchor.mean_LD, moments.mean_LD.float())
    torch.testing.assert_close(anchor.std_LD, moments.std_LD.float())


def assert_one_sentence(message: str, *parts: object) -> None:
    assert message.endswith("rebuild it with aegis-anchor.")
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_a_missing_anchor_is_named(tmp_path):
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(AnchorError) as error:
        GaussianAnchor.load(path)
    assert_one_sentence(str(error.value), "no anchor at", path)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_anchor_is_refused(anchor, tmp_path, size):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AnchorError) as error:
        GaussianAnchor.load(path)
    assert_one_sentence(str(error.value), path, "truncated or not a safetensors file")


GOOD = torch.ones(L, D)
METADATA = {"kind": "gaussian", "format_version": "1", "tokens": "7"}


@pytest.mark.parametrize(
    ("tensors", "metadata", "complaint"),
    [
        ({"mean": GOOD}, METADATA, "holds ['mean']"),
        ({"mean": GOOD, "std": GOOD, "more": GOOD}, METADATA, "not ['mean', 'std']"),
        ({"mean": GOOD, "std": torch.ones(L, D + 1)}, METADATA, "shapes (2, 4) and (2, 5)"),
        ({"mean": torch.ones(D), "std": torch.ones(D)}, METADATA, "shapes (4,) and (4,)"),
        ({"mean": GOOD * torch.nan, "std": GOOD}, METADATA, "not finite"),
        ({"mean": GOOD, "std": GOOD / 0}, METADATA, "not finite"),
        ({"mean": GOOD, "std": -GOOD}, METADATA, "negative standard deviation"),
        ({"mean": GOOD, "std": GOOD}, METADATA | {"tokens": "0"}, "no token"),
        ({"mean": GOOD, "std": GOOD}, METADATA | {"tokens": "many"}, "no token"),
        ({"mean": GOOD, "std": GOOD}, METADATA | {"kind": "subspace"}, "'subspace'"),
        ({"mean": GOOD, "std": GOOD}, METADATA | {"format_version": "2"}, "format '2'"),
        ({"mean": GOOD, "std": GOOD}, None, "None"),
    ],
)
def test_an_unusable_anchor_file_is_refused(tmp_path, tensors, metadata, complaint):
    path = tmp_path / "anchor.safetensors"
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)
    with pytest.raises(AnchorError) as error:
        GaussianAnchor.load(path)
    assert_one_sentence(str(error.value), path, complaint)


def test_an_anchor_cannot_be_made_from_values_that_are_not_finite():
    with pytest.raises(AnchorError, match="not finite"):
        GaussianAnchor(GOOD * torch.inf, GOOD, count=1)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ((L + 1, D, "abc"), "describes 2 layers but the model has 3"),
        ((L, D + 1, "abc"), "hidden states of size 4 but the model's have size 5"),
        ((L, D, "xyz"), "made from weights abc but the model has xyz"),
    ],
)
def test_an_anchor_of_another_model_is_refused(anchor, model, complaint):
    with pytest.raises(AnchorError) as error:
        anchor.check(*model)
    assert_one_sentence(str(error.value), "The anchor of toy", complaint)


@pytest.mark.parametrize("fingerprint", ["abc", None])
def test_an_anchor_of_the_same_model_passes(anchor, fingerprint):
    anchor.check(L, D, fingerprint)
