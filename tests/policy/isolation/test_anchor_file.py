"""The one file of an anchor: it comes back whole, or it is refused with a sentence."""

import json
import math
import random
import struct
from pathlib import Path

import pytest
import torch
from mutants import mutate_bytes, mutate_json
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from aegis_policy.isolation import Anchor, AnchorError, GaussianAnchor, LinearFactors, Spectrum

L, D, E, K = 2, 4, 6, 3


def spectrum(width: int) -> Spectrum:
    vectors = torch.linalg.qr(torch.randn(width, K)).Q
    return Spectrum(torch.rand(K).sort(descending=True).values, vectors, torch.tensor(5.0))


@pytest.fixture
def anchor() -> Anchor:
    torch.manual_seed(2)
    gaussian = GaussianAnchor(torch.randn(L, D), torch.rand(L, D), count=345)
    shared = spectrum(D)
    factors = {
        "layers.0.gate": LinearFactors(shared),
        "layers.0.up": LinearFactors(shared, torch.tensor([0.5, 0.25, 0.0])),
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
    kept, expected = (each.factors["layers.0.up"].inputs for each in (loaded, anchor))
    assert torch.equal(kept.values_K, expected.values_K)
    assert torch.equal(kept.total, expected.total)
    torch.testing.assert_close(kept.vectors_DK.float(), expected.vectors_DK, rtol=0, atol=2**-11)
    assert torch.equal(loaded.importance["layers.0.up.weight"], anchor.importance["layers.0.up.weight"])
    assert loaded.metadata == anchor.metadata | {"kind": "aegis-anchor", "format_version": "3"}
    assert [each.name for each in path.parent.iterdir()] == ["anchor.safetensors"]


def assert_same_anchor(one: Anchor, other: Anchor, metadata: bool = True) -> None:
    """Bit for bit, by what is written of them."""
    left, right = one._tensors(), other._tensors()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert not metadata or one.metadata == other.metadata


def test_a_part_of_an_anchor_holds_what_was_asked_for(anchor):
    part = anchor.part(factors=True)
    assert part.factors.keys() == anchor.factors.keys() and not part.gaussians and not part.importance
    assert part.metadata == anchor.metadata
    for kept, whole in zip(
        part.factors["layers.0.up"].inputs, anchor.factors["layers.0.up"].inputs, strict=True
    ):
        assert torch.equal(kept, whole)
    assert torch.equal(
        anchor.part(gaussians=["all"]).gaussians["all"].mean_LD, anchor.gaussians["all"].mean_LD
    )
    importance = anchor.part(importance=True).importance
    assert all(torch.equal(values, anchor.importance[name]) for name, values in importance.items())
    assert importance.keys() == anchor.importance.keys()


def test_a_part_of_an_anchor_does_not_hold_on_to_the_file(anchor, tmp_path):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    part = Anchor.load(path).part(factors=True, importance=True)
    assert str(path) not in Path("/proc/self/maps").read_text()
    assert part.factors.keys() == anchor.factors.keys()


def test_a_failed_save_leaves_the_old_anchor_and_nothing_beside_it(anchor, tmp_path, monkeypatch):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    before = path.read_bytes()

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("aegis_policy.isolation._anchor_file.save_file", full_disk)
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
METADATA = {"kind": "aegis-anchor", "format_version": "3"}


def test_an_anchor_with_moments_of_image_and_text_tokens_too_loads(tmp_path):
    tensors = {
        f"gaussian/{group}/{key}": x.clone()
        for group in ("all", "image", "text")
        for key, x in MOMENTS.items()
    }
    save_file(tensors, tmp_path / "old", METADATA)
    assert Anchor.load(tmp_path / "old").part(gaussians=["all"]).gaussians.keys() == {"all"}


def test_covariances_of_output_gradients_of_before_are_passed_over(anchor, tmp_path):
    anchor.save(tmp_path / "new")
    tensors = load_file(tmp_path / "new") | {f"outputs/layers.1.up/{key}": x for key, x in FACTOR.items()}
    save_file(tensors, tmp_path / "old", {**anchor.metadata, **METADATA, **shared_in(tmp_path / "new")})
    assert_same_anchor(Anchor.load(tmp_path / "old"), Anchor.load(tmp_path / "new"))


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
            {"importance": torch.tensor([-1.0]).bfloat16()},
            METADATA,
            "importance of up holds values that are negative",
        ),
        ({"count": torch.tensor(7.0)}, {}, METADATA, "gaussian/all/count is of float32"),
        ({"count": torch.tensor([7, 7])}, {}, METADATA, "is not whole"),
        ({"noise": -GOOD}, {}, METADATA, "noise is of another shape, negative"),
        ({"noise": torch.ones(L)}, {}, METADATA, "noise is of another shape"),
        ({"meen": GOOD}, {}, METADATA, "'gaussian/all/meen' is no part of an anchor"),
        ({}, {"vectors": torch.eye(D)[:, :2]}, METADATA, "inputs/up/vectors is of float32"),
        ({}, {"vectors": torch.ones(D, 2).half()}, METADATA, "directions of up are not orthonormal"),
        ({}, {"vectors": torch.zeros(D, 0).half(), "values": torch.ones(0)}, METADATA, "0 directions of 4"),
        (
            {},
            {"vectors": torch.ones(D, 2, 1).half(), "values": torch.ones(2, 1)},
            METADATA,
            "different numbers",
        ),
        ({}, {"values": torch.tensor([1.0, -0.1])}, METADATA, "eigenvalues that are negative"),
        ({}, {"values": torch.zeros(2)}, METADATA, "eigenvalues that are negative"),
        ({}, {"values": torch.tensor([1.0, 1.5])}, METADATA, "inputs/up has eigenvalues that do not descend"),
        ({}, {"total": torch.tensor(0.5)}, METADATA, "more than their sum"),
        ({}, {"importance": torch.tensor([1.0])}, METADATA, "importance/up is of float32"),
        ({}, {"gradient": torch.ones(3) / 4}, METADATA, "gradient/up has (3,) shares of 2 directions"),
        ({}, {"gradient": torch.tensor([0.5, -0.1])}, METADATA, "gradient/up holds shares that are negative"),
        ({}, {"gradient": torch.tensor([0.5, 0.7])}, METADATA, "more than all of it"),
        ({}, {}, METADATA | {"checksum": "00"}, "holds other values than were written"),
        ({}, {}, METADATA | {"kind": "gaussian"}, "'gaussian'"),
        ({}, {}, METADATA | {"format_version": "1"}, "format '1'"),
        ({}, {}, None, "None"),
    ],
)
def test_an_unusable_anchor_file_is_refused(tmp_path, moments, factor, metadata, complaint):
    tensors = {f"gaussian/all/{key}": value for key, value in (MOMENTS | moments).items()}
    tensors |= {
        f"{key}/up" if key in ("gradient", "importance") else f"inputs/up/{key}": value
        for key, value in (FACTOR | factor).items()
    }
    path = tmp_path / "anchor.safetensors"
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}, path, metadata
    )
    with pytest.raises(AnchorError) as error:
        Anchor.load(path)
    assert_one_sentence(str(error.value), path, complaint)


def test_a_file_of_a_later_version_says_what_to_update(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "anchor", METADATA | {"format_version": "4"})
    with pytest.raises(
        AnchorError, match=r"format '4', and this version reads '3': update lerobot_policy_aegis"
    ):
        Anchor.load(tmp_path / "anchor")


def test_a_file_that_holds_nothing_is_refused(tmp_path):
    save_file({}, tmp_path / "anchor", METADATA)
    with pytest.raises(AnchorError, match="holds nothing"):
        Anchor.load(tmp_path / "anchor")


def test_a_file_of_before_checksums_loads(anchor, tmp_path):
    anchor.save(tmp_path / "new")
    save_file(
        load_file(tmp_path / "new"),
        tmp_path / "old",
        {**anchor.metadata, **METADATA, **shared_in(tmp_path / "new")},
    )
    assert_same_anchor(Anchor.load(tmp_path / "old"), Anchor.load(tmp_path / "new"))


def shared_in(path: Path) -> dict[str, str]:
    """What the header of a file says of layers that share their inputs."""
    with safe_open(path, "pt") as file:
        return {"shared_inputs": file.metadata()["shared_inputs"]}


def test_layers_that_read_the_same_inputs_share_one_spectrum_in_memory_and_in_the_file(anchor, tmp_path):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    assert not [name for name in load_file(path) if name.startswith("inputs/layers.0.up/")]
    loaded = Anchor.load(path)
    for whole in (loaded, loaded.part(factors=True)):
        factors = whole.factors
        assert factors["layers.0.gate"].inputs is factors["layers.0.up"].inputs
        assert factors["layers.0.up"].inputs is not factors["layers.1.up"].inputs
    loaded.save(tmp_path / "again")
    assert load_file(tmp_path / "again").keys() == load_file(path).keys()


def test_the_answers_gradient_belongs_to_the_weight(anchor, tmp_path):
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    factors = Anchor.load(path).part(factors=True).factors
    assert torch.equal(factors["layers.0.up"].gradient_K, anchor.factors["layers.0.up"].gradient_K)
    assert factors["layers.0.gate"].gradient_K is None


def test_an_anchor_of_before_inputs_were_shared_loads(tmp_path):
    tensors = {f"inputs/{name}/{key}": value for name in ("gate", "up") for key, value in FACTOR.items()}
    save_file(
        {name: x.clone() for name, x in tensors.items()}, tmp_path / "old", METADATA | {"format_version": "2"}
    )
    factors = Anchor.load(tmp_path / "old").factors
    assert factors.keys() == {"gate", "up"} and all(each.gradient_K is None for each in factors.values())


@pytest.mark.parametrize(
    ("shared", "complaint"),
    [
        ("{", "is not whole"),
        ('["gate"]', "does not name layers"),
        ('{"gate": 1}', "does not name layers"),
        ('{"gate": "down"}', "inputs/down is missing, which other layers share"),
        ('{"up": "up"}', "inputs/up is there, and said to be another layer's"),
    ],
)
def test_a_file_that_shares_what_is_not_there_is_refused(tmp_path, shared, complaint):
    tensors = {f"inputs/up/{key}": value for key, value in FACTOR.items()}
    save_file(tensors, tmp_path / "anchor", METADATA | {"shared_inputs": shared})
    with pytest.raises(AnchorError) as error:
        Anchor.load(tmp_path / "anchor")
    assert_one_sentence(str(error.value), complaint)


@pytest.mark.parametrize("mutants", [200, pytest.param(4_000, marks=pytest.mark.slow)])
def test_a_mutant_of_a_file_is_refused_in_a_sentence_or_holds_what_it_held(anchor, tmp_path, mutants):
    anchor.save(tmp_path / "whole")
    whole, path = Anchor.load(tmp_path / "whole"), tmp_path / "mutant"
    data = (tmp_path / "whole").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    rng, refused = random.Random(0), 0
    for index in range(mutants):
        if index % 2:
            changed = json.dumps(mutate_json(header, rng)).encode()
            mutant = struct.pack("<Q", len(changed)) + changed + data[8 + size :]
        else:
            mutant = mutate_bytes(data, rng)
        path.write_bytes(mutant)
        try:
            loaded = Anchor.load(path)
        except AnchorError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error)
        else:
            assert_same_anchor(loaded, whole, metadata=False)
    assert refused > 0.8 * mutants


@pytest.mark.parametrize("mutants", [100, pytest.param(2_000, marks=pytest.mark.slow)])
def test_a_mutant_of_tensors_of_before_checksums_is_refused_in_a_sentence_or_an_anchor(
    anchor, tmp_path, mutants
):
    anchor.save(tmp_path / "whole")
    original, path = load_file(tmp_path / "whole"), tmp_path / "mutant"
    header = METADATA | shared_in(tmp_path / "whole")
    rng = random.Random(0)
    changes = {
        "value": lambda x: x.index_fill(0, torch.tensor([0]), rng.choice([-1, 0, 7])) if x.ndim else x * 0,
        "nan": lambda x: x * float("nan"),
        "infinite": lambda x: x.float() / 0,
        "dtype": lambda x: x.to(
            rng.choice([torch.int8, torch.float64, torch.bool, torch.float16, torch.bfloat16])
        ),
        "bits": lambda x: x.view({2: torch.int16, 4: torch.int32, 8: torch.float64}[x.element_size()]),
        "shape": lambda x: rng.choice([x.flatten(), x[None], x.unsqueeze(-1), x[:0] if x.ndim else x]),
        "transposed": lambda x: x.mT.contiguous() if x.ndim == 2 else x,
        "empty": lambda x: torch.empty(0, 2**40, dtype=x.dtype),
    }
    for _ in range(mutants):
        tensors = dict(original)
        key = rng.choice(sorted(tensors))
        kind = rng.choice([*changes, "removed", "renamed"])
        tensor = tensors.pop(key)
        if kind in changes:
            tensors[key] = changes[kind](tensor).clone()
        elif kind == "renamed":
            tensors[rng.choice(["", "/", "//", key + "/x", "x/" + key, key[1:], "a/b/c\nd"])] = tensor
        save_file(tensors, path, header)
        try:
            Anchor.load(path).part(gaussians=["all"], factors=True, importance=True)
        except AnchorError as error:
            assert "\n" not in str(error)
        except KeyError as error:
            assert error.args == ("all",), "the moments were renamed"


@pytest.mark.parametrize("shape", [[2**40], [2**40, 2**40], [2**62, 2**62], [0, 2**40]])
def test_a_header_that_declares_more_than_the_file_holds_takes_no_memory(tmp_path, shape):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, min(2**63, 4 * math.prod(shape))]}
    header = json.dumps({"__metadata__": METADATA, "gaussian/all/mean": entry}).encode()
    (tmp_path / "anchor").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(AnchorError):
        Anchor.load(tmp_path / "anchor")
    (tmp_path / "anchor").write_bytes(struct.pack("<Q", 2**60) + header)
    with pytest.raises(AnchorError):
        Anchor.load(tmp_path / "anchor")


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
