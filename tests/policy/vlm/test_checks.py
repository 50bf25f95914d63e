"""What is found out about a VLM before it is trained, and that training and `aegis-doctor` say it alike."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_vlms import FAMILY_RECIPES, save_tiny_vlm

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.checks import check_saving


@pytest.mark.parametrize("family", ["embedded", *FAMILY_RECIPES])
def test_every_family_is_saved_and_read_again_as_it_was(family: str, tmp_path: Path) -> None:
    name = family if family == "embedded" else save_tiny_vlm(family, tmp_path / family)
    assert not list(check_saving(VLMBackbone.from_pretrained(name)))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda vlm: setattr(vlm.model.config, "colours", {"red"}), "cannot be saved .*JSON serializable"),
        (lambda vlm: setattr(vlm.processor.image_processor, "colours", object()), "cannot be saved"),
        (lambda vlm: setattr(vlm.model.generation_config, "top_k", 3), "cannot be saved .*`top_k`"),
        (lambda vlm: setattr(vlm.model.config, "num_beams", 3), "cannot be saved .*model.generation_config"),
        (lambda vlm: setattr(vlm.processor.tokenizer, "_tokenizer", None), "cannot be saved"),
        (
            lambda vlm: setattr(vlm.model.config.text_config, "intermediate_size", 8),
            "would not be .* the shapes of its weights",
        ),
        (lambda vlm: setattr(vlm.processor, "image_seq_length", 1), "would not be .* input_ids"),
    ],
)
def test_what_a_checkpoint_could_not_keep_is_said_before_there_is_one(
    spoil: Callable[[VLMBackbone], Any], sentence: str, tiny_vlm_dir: Path
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    spoil(vlm)
    (finding,) = check_saving(vlm)
    assert finding.status == "error"
    assert re.search(f"tiny-paligemma2 {sentence}", str(finding))
