"""The one file of an anchor: it comes back whole, or it is refused with a sentence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aegis_policy.isolation import Anchor, AnchorError, GaussianAnchor, LinearFactors, Spectrum

L, D, E, K = 2, 4, 6, 3


def spectrum(width: int) -> Spectrum:
    vectors = torch.linalg.qr(torch.randn(width, K)).Q
    return Spectrum(torch.rand(K).sort(descending=True).values, vectors, torch.tensor(5.0))


@pytest.fixture
def anchor() -> Anchor:
    torch.manual_seed(2)
    gaussian = GaussianAnchor(torch.randn(L, D), torch.rand(L, D), count=345)
    factors = {
        "layers.0.up": LinearFactors(spectrum(D), spectrum(E)),
        "layers.1.up": LinearFactors(spectrum(D)),
    }
    metadata = {"vlm": "toy", "fingerprint": "abc", "samples": "12", "source": "tests"}
    importance = {"layers.0.up.weight": torch.rand(E, D).bfloat16().float()}
    return Anchor({"all": gaussian}, factors, importance, metadata)


def test_an_anchor_comes_back_from_its_file(anchor, tmp_path):
    path = tmp_path / "new" / "anchor.safetensors"
    anchor.save(path)
    loaded = Anchor.load(path)
    gaussian, original = loaded.gaussians["all"], anchor.gaussians["all"]
    assert torch.equal(gaussian.mean_LD, original.mean_LD)
    assert torch.equal(gaussian.std_LD, original.std_LD)
    assert gaussian.count == 345
    assert loaded.factors.keys() == anchor.factors.keys()
    assert loaded.factors["layers.1.up"].outputs is None
    for side in ("inputs", "outputs"):
        kept, expected = (getattr(each.factors["layers.0.up"], side) for each in (loaded, anchor))
        assert torch.equal(kept.values_K, expected.values_K)
        assert torch.equal(kept.total, expected.total)
        torch.testing.assert_close(kept.vectors_DK.float(), expected.vectors_DK, rtol=0, atol=2**-11)
    assert torch.equal(loaded.importance["layers.0.up.weight"], anchor.importance["layers.0.up.weight"])
    assert loaded.metadata == anchor.metadata | {"kind": "aegis-anchor", "format_version": "2"}
    assert [each.name for each in path.parent.iterdir()] == ["anchor.safetensors"]


def test_a_part_of_an_anchor_holds_what_was_asked_for(anchor):
    inputs = anchor.part(inputs=True)
    assert inputs.factors.keys() == anchor.factors.keys() and not inputs.gaussians and not inputs.importance
    assert all(layer.outputs is None for layer in inputs.factors.values())
    assert inputs.metadata == anchor.metadata
    both = anchor.part(inputs=True, outputs=True).factors["layers.0.up"]
    for side in ("inputs", "outputs"):
        whole = getattr(anchor.factors["layers.0.up"], side)
        assert all(map(torch.equal, getattr(both, side), whole))
    assert torch.equal(
        anchor.part(gaussians=["all"]).gaussians["all"].mean_LD, anchor.gaussians["all"].mean_LD
    )
    importance = anchor.part(importance=True).importance
    assert all(torch.equal(values, anchor.importance[name]) for name, values in importance.items())
    assert importance.keys() == anchor.importance.keys()


def test_a_part_of_an_anchor_does_not_hold_on_to_the_file(anchor, tmp_path):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    part = Anchor.load(path).part(inputs=True, importance=True)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert part.factors.keys() == anchor.factors.keys()


def test_a_failed_save_leaves_the_old_anchor_and_nothing_beside_it(anchor, tmp_path, monkeypatch):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("aegis_policy.isolation._anchor.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        anchor.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def assert_one_sentence(message: str, *parts: object) -> None:
    assert message.endswith("rebuild it from the pretrained model.")
    assert message.count("rebuild it") == 1
    assert "\n" not in message
    for part in parts:
        assert str(part) in message


def test_a_missing_anchor_is_named(tmp_path):
    path = tmp_path / "nowhere.safetensors"
    with pytest.raises(AnchorError) as error:
        Anchor.load(path)
    assert_one_sentence(str(error.value), "no anchor at", path)


@pytest.mark.parametrize("size", [0, 5, 60, -1])
def test_a_truncated_anchor_is_refused(anchor, tmp_path, size):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(AnchorError) as error:
        Anchor.load(path)
    assert_one_sentence(str(error.value), path, "truncated or not a safetensors file")


GOOD = torch.ones(L, D)
MOMENTS = {"mean": GOOD, "std": GOOD, "count": torch.tensor(7)}
FACTOR = {"values": torch.ones(2), "vectors": torch.eye(D)[:, :2].half(), "total": torch.tensor(3.0)}
METADATA = {"kind": "aegis-anchor", "format_version": "2"}


@pytest.mark.parametrize(
    ("moments", "factor", "metadata", "complaint"),
    [
        ({"std": None}, {}, METADATA, "gaussian/all/std"),
        ({"count": None}, {}, METADATA, "gaussian/all/count"),
        ({"std": torch.ones(L, D + 1)}, {}, METADATA, "shapes (2, 4) and (2, 5)"),
        ({"mean": torch.ones(D), "std": torch.ones(D)}, {}, METADATA, "shapes (4,) and (4,)"),
        ({"mean": GOOD * torch.nan}, {}, METADATA, "not finite"),
        ({"std": GOOD / 0}, {}, METADATA, "not finite"),
        ({"std": -GOOD}, {}, METADATA, "negative standard deviation"),
        ({"count": torch.tensor(0)}, {}, METADATA, "no token"),
        ({}, {"total": None}, METADATA, "inputs/up/total"),
        ({}, {"values": torch.ones(3)}, METADATA, "different numbers"),
        ({}, {"values": torch.full((2,), torch.nan)}, METADATA, "not finite"),
        (
            {},
            {"importance": torch.tensor([-1.0])},
            METADATA,
            "importance of up holds values that are negative",
        ),
        ({}, {}, METADATA | {"kind": "gaussian"}, "'gaussian'"),
        ({}, {}, METADATA | {"format_version": "1"}, "format '1'"),
        ({}, {}, None, "None"),
    ],
)
def test_an_unusable_anchor_file_is_refused(tmp_path, moments, factor, metadata, complaint):
    tensors = {f"gaussian/all/{key}": value for key, value in (MOMENTS | moments).items()}
    tensors |= {
        "importance/up" if key == "importance" else f"inputs/up/{key}": value
        for key, value in (FACTOR | factor).items()
    }
    path = tmp_path / "anchor.safetensors"
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}, path, metadata
    )
    with pytest.raises(AnchorError) as error:
        Anchor.load(path)
    assert_one_sentence(str(error.value), path, complaint)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ((L + 1, D), "describes 2 layers but the model has 3"),
        ((L, D + 1), "hidden states of size 4 but the model's have size 5"),
    ],
)
def test_an_anchor_of_another_model_is_refused(anchor, model, complaint):
    with pytest.raises(AnchorError) as error:
        anchor.check(*model)
    assert_one_sentence(str(error.value), complaint)


def test_an_anchor_of_the_same_model_passes(anchor):
    anchor.check(L, D)
