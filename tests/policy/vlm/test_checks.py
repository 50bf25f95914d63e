"""What is found out about a VLM before it is trained, and that training and `aegis-doctor` say it alike."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_vlms import FAULTS, MENDED, RAN, Fault
from tiny_vlms import FAMILY_RECIPES, save_tiny_vlm

from aegis_eval.doctor.files import check_vlm as doctor_says
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.checks import check_saving

ASKED = ([np.full((40, 30, 3), 90, np.uint8)] * 2, ["what is it", "how many red cubes are there"])


@pytest.mark.parametrize("family", ["embedded", *FAMILY_RECIPES])
def test_every_family_is_saved_and_read_again_as_it_was(family: str, tmp_path: Path) -> None:
    name = family if family == "embedded" else save_tiny_vlm(family, tmp_path / family)
    assert not list(check_saving(VLMBackbone.from_pretrained(name)))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda vlm: setattr(vlm.model.config, "colours", {"red"}), "cannot be saved .*JSON serializable"),
        (lambda vlm: setattr(vlm.processor.image_processor, "colours", object()), "cannot be saved"),
        (lambda vlm: setattr(vlm._generation, "top_k", 3), "cannot be saved .*`top_k`"),
        (lambda vlm: setattr(vlm.model.config, "num_beams", 3), "cannot be saved .*model.generation_config"),
        (lambda vlm: setattr(vlm.processor.tokenizer, "_tokenizer", None), "cannot be saved"),
        (
            lambda vlm: setattr(vlm.model.config.text_config, "intermediate_size", 8),
            "would not be .* shapes of its weights",
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm("smolvlm", tmp_path_factory.mktemp("vlm") / "whole")


@pytest.fixture(scope="module")
def answers(whole: Path) -> list[str]:
    return VLMBackbone.from_pretrained(whole).eval().answer(*ASKED)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_training_and_the_doctor_say_the_same_of_a_broken_vlm(
    fault: Fault, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "vlm"
    shutil.copytree(whole, folder)
    fault.spoil(folder)
    with pytest.raises(AegisError) as error:
        VLMBackbone.from_pretrained(folder)
    sentence = str(error.value)
    assert re.search(fault.sentence, sentence)
    assert f"--policy.vlm={folder}" in sentence and "\n" not in sentence and len(sentence) < 700
    assert [str(each) for each in doctor_says(str(folder))] == [sentence]
    assert not (folder / RAN).exists()


@pytest.mark.parametrize("fault", MENDED.values(), ids=MENDED)
def test_what_transformers_would_not_save_or_pad_is_mended_and_answers_stay(
    fault: Fault, whole: Path, answers: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "vlm"
    shutil.copytree(whole, folder)
    fault.spoil(folder)
    vlm = VLMBackbone.from_pretrained(folder).eval()
    logged = [record.getMessage() for record in caplog.records if record.name == "root"]
    assert [str(each) for each in doctor_says(str(folder)) if each.status != "ok"] == logged
    assert re.search(fault.sentence, " | ".join(logged)) and len(logged) == bool(fault.sentence)
    vlm.save_architecture(tmp_path / "saved")
    again = VLMBackbone.from_architecture(tmp_path / "saved").eval()
    again.load_state_dict(vlm.state_dict())
    vlm.save_pretrained(tmp_path / "exported")
    exported = VLMBackbone.from_pretrained(tmp_path / "exported").eval()
    assert [each.answer(*ASKED) for each in (vlm, again, exported)] == [answers] * 3
    assert not (folder / RAN).exists()
