"""What is found out about a VLM before it is trained, and that training and `aegis-doctor` say it alike."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken_vlms import FAULTS, MENDED, RAN, Fault
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from random_data import write_random_dataset
from tiny_vlms import FAMILY_RECIPES, save_tiny_vlm
from transformers import AutoModelForImageTextToText

from aegis_eval.doctor.files import check_vlm as doctor_says
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.checks import check_reading, check_saving

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


@pytest.mark.parametrize(
    ("tasks", "instruction", "sentence"),
    [
        (["reach"], None, ""),
        (
            ["reach", "go " * 3000],
            None,
            r"The instruction 'go go .*\.\.\.' makes 6000 tokens, and .* reads 2048",
        ),
        (["up " * 3000, "go " * 3000], None, r"'up .*' \(and 1 more of 2 instructions\) makes 3000 tokens"),
        (["reach"], "go " * 3000, "The instruction 'go .* makes 6000 tokens"),
        (
            ["reach <image>", "pick <eos>", "pick {up}"],
            None,
            "3 of 3 instructions hold letters .* 'reach <image>'",
        ),
        (["go " * 3000], "reach", ""),
        (["reach", "\u63a8"], None, "1 of 2 instructions hold letters that .* does not know"),
    ],
)
def test_training_and_the_doctor_say_the_same_of_instructions(
    tasks: list[str],
    instruction: str | None,
    sentence: str,
    make_config: Callable[..., AegisConfig],
    tiny_vlm_dir: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    cameras = dict.fromkeys(("observation.images.front", "observation.images.wrist"), (32, 32))
    root = write_random_dataset(tmp_path / "data", cameras, state=5, action=3, tasks=tasks)
    flags = [] if instruction is None else [f"--instruction={instruction}"]
    said = [str(each) for each in doctor_says(str(tiny_vlm_dir), root, flags) if each.status != "ok"]
    try:
        AegisPolicy(
            make_config("none", instruction=instruction),
            dataset_meta=LeRobotDatasetMetadata("local/data", root=root),
        )
        found = [record.getMessage() for record in caplog.records if "instruction" in record.getMessage()]
    except AegisError as error:
        found = [str(error)]
    assert said == found and len(said) == bool(sentence)
    assert re.search(sentence, " ".join(said))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_type_and_in_shards_learn_in_float32(
    dtype: torch.dtype, whole: Path, tmp_path: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(whole, dtype=dtype)
    shutil.copytree(whole, tmp_path / "vlm", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model.save_pretrained(tmp_path / "vlm", max_shard_size="50KB")
    assert len(list((tmp_path / "vlm").glob("*.safetensors"))) > 2
    vlm = VLMBackbone.from_pretrained(tmp_path / "vlm")
    assert [each.status for each in doctor_says(str(tmp_path / "vlm"))] == ["ok"]
    for name, x in vlm.model.named_parameters():
        assert x.dtype == torch.float32
        assert torch.equal(x, model.get_parameter(name).float())
    vlm.save_architecture(tmp_path / "saved")
    again = VLMBackbone.from_architecture(tmp_path / "saved")
    assert {x.dtype for x in again.model.parameters()} == {torch.float32}


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
        enforce(check_reading(VLMBackbone.from_pretrained(folder)))
    sentence = str(error.value)
    assert re.search(fault.sentence, sentence)
    assert str(folder) in sentence and "\n" not in sentence and len(sentence) < 700
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
