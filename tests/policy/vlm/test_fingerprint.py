"""What tells one VLM's weights from another's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from aegis_policy.isolation import Anchor
from aegis_policy.pretrained import embedded_anchor
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.fingerprint import same_weights

PARTS: dict[str, Callable[[VLMBackbone], torch.nn.Module]] = {
    "decoder": lambda vlm: vlm.decoder_layers,
    "vision tower": lambda vlm: vlm.vision_tower,
    "projector": lambda vlm: vlm.projector,
    "embedding": lambda vlm: vlm.model.get_input_embeddings(),
    "head": lambda vlm: vlm.model.get_output_embeddings(),
    "last norm": lambda vlm: vlm.model.base_model.language_model.norm,
}


@pytest.fixture
def vlm(tiny_vlm_dir: Path) -> VLMBackbone:
    return VLMBackbone.from_pretrained(tiny_vlm_dir)


@pytest.mark.parametrize("part", PARTS)
def test_one_value_of_any_part_makes_other_weights(vlm: VLMBackbone, part: str) -> None:
    before = vlm.fingerprint()
    with torch.no_grad():
        list(PARTS[part](vlm).parameters())[-1].view(-1)[-1] += 0.1
    assert not same_weights(vlm.fingerprint(), before)


def test_neither_precision_nor_a_rebuilt_model_makes_other_weights(
    vlm: VLMBackbone, tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    assert vlm.fingerprint() == vlm.fingerprint()
    half = VLMBackbone.from_pretrained(tiny_vlm_dir, dtype=torch.bfloat16)
    assert half.fingerprint() == vlm.fingerprint()
    half.save_pretrained(tmp_path / "half")
    assert VLMBackbone.from_pretrained(tmp_path / "half").fingerprint() == vlm.fingerprint()


def test_a_tied_weight_counts_once_however_often_it_is_there(vlm: VLMBackbone) -> None:
    before = vlm.fingerprint()
    head, embedding = vlm.model.get_output_embeddings(), vlm.model.get_input_embeddings()
    assert head.weight is embedding.weight
    head.weight = torch.nn.Parameter(embedding.weight.detach().clone())
    assert vlm.fingerprint() == before


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("abc-def", "abc-def", True),
        ("abc-def", "abc-xyz", False),
        ("xyz-def", "abc-def", False),
        ("abc", "abc-def", True),
        ("abc-def", "abc", True),
        ("xyz", "abc-def", False),
        (None, "abc-def", True),
        ("abc", None, True),
        ("", "abc", True),
    ],
)
def test_fingerprints_of_earlier_versions_are_compared_by_what_they_hold(
    one: str | None, other: str | None, same: bool
) -> None:
    assert same_weights(one, other) == same


def test_the_embedded_anchor_is_of_the_embedded_vlm() -> None:
    made_from = Anchor.load(embedded_anchor()).metadata["fingerprint"]
    assert made_from == VLMBackbone.from_pretrained("embedded").fingerprint(), "of all of its weights"
