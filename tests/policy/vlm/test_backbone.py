"""The backbone's two views of one model, and what it says when it cannot be loaded."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, BertConfig, PaliGemmaConfig

from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

_TINY = {
    "image_size": 32,
    "patch_size": 16,
    "vision_layers": 1,
    "vision_width": 32,
    "text_width": 32,
    "heads": 2,
}


@pytest.fixture(scope="module")
def vlm(tiny_vlm_dir: Path) -> VLMBackbone:
    return VLMBackbone.from_pretrained(tiny_vlm_dir).eval()


def _images(count: int, seed: int = 0, size: int = 32) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def _as_floats(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255


def test_prefix_is_what_the_model_computes_itself(vlm: VLMBackbone) -> None:
    inputs = vlm.prepare([_as_floats(_images(2))], ["push the red cube"] * 2)
    prefix = vlm.encode(inputs)
    with torch.no_grad():
        expected = vlm.model(**inputs, output_hidden_states=True).hidden_states
    assert len(prefix.hidden_states) == vlm.num_layers == 2
    # transformers applies the final norm to the last entry; the layer outputs before it are comparable as they are.
    torch.testing.assert_close(prefix.hidden_states[0], expected[1])
    normed = vlm.model.model.language_model.norm(prefix.hidden_states[1])
    torch.testing.assert_close(normed, expected[2])


def test_padding_does_not_change_the_hidden_states(vlm: VLMBackbone) -> None:
    images = [_as_floats(_images(2)), _as_floats(_images(2, seed=1))]
    together = vlm.encode(vlm.prepare(images, ["reach the cube", "push the red cube up to the blue zone"]))
    alone = vlm.encode(vlm.prepare([view[:1] for view in images], ["reach the cube"]))
    valid = together.mask[0]
    assert int(valid.sum()) == alone.mask.shape[1] < together.mask.shape[1]
    for padded, exact in zip(together.hidden_states, alone.hidden_states, strict=True):
        torch.testing.assert_close(padded[0][valid], exact[0], atol=1e-5, rtol=1e-5)


def test_every_camera_adds_its_image_tokens_and_changes_the_prefix(vlm: VLMBackbone) -> None:
    front, wrist = _as_floats(_images(1)), _as_floats(_images(1, seed=1))
    one = vlm.encode(vlm.prepare([front], ["reach the cube"]))
    two = vlm.encode(vlm.prepare([front, wrist], ["reach the cube"]))
    swapped = vlm.encode(vlm.prepare([wrist, front], ["reach the cube"]))
    assert two.mask.sum() - one.mask.sum() == 4
    assert not torch.allclose(two.hidden_states[-1], swapped.hidden_states[-1])


@pytest.mark.parametrize("size", [32, 48, 20])
def test_camera_frames_and_pictures_of_questions_give_the_same_pixels(vlm: VLMBackbone, size: int) -> None:
    images = _images(2, size=size)
    as_floats = vlm.prepare([_as_floats(images)], ["what is it"] * 2)["pixel_values"]
    as_bytes = vlm.question_inputs(images, ["what is it"] * 2)["pixel_values"]
    torch.testing.assert_close(as_floats, as_bytes, atol=1e-5, rtol=1e-5)


def test_answers_do_not_depend_on_the_batch_they_are_asked_in(vlm: VLMBackbone) -> None:
    images = _images(3)
    questions = ["what colour is the cube?", "red", "is the green sphere up?"]
    together = vlm.answer(images, questions, max_new_tokens=4)
    alone = [vlm.answer([i], [q], max_new_tokens=4)[0] for i, q in zip(images, questions, strict=True)]
    assert together == alone


def test_answering_leaves_the_training_mode_as_it_was(vlm: VLMBackbone) -> None:
    vlm.train()
    vlm.answer(_images(1), ["red"], max_new_tokens=1)
    assert vlm.model.training
    vlm.eval()


def test_saved_model_is_a_plain_transformers_directory(vlm: VLMBackbone, tmp_path: Path) -> None:
    vlm.save_pretrained(tmp_path / "saved")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    inputs = processor(images=_images(1), text=["<image>answer en red"], return_tensors="pt")
    inputs.pop("labels", None)
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, vlm.model(**inputs).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_saved_pads_as_the_original_whatever_was_read_or_answered(
    tiny_vlm_dir: Path, side: str, tmp_path: Path
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    vlm.processor.tokenizer.padding_side = side
    vlm.prepare([_as_floats(_images(2))], ["red", "is the green sphere up?"])
    vlm.answer(_images(2), ["red", "is the green sphere up?"], max_new_tokens=1)
    vlm.save_pretrained(tmp_path / "saved")
    assert AutoProcessor.from_pretrained(tmp_path / "saved").tokenizer.padding_side == side


def test_architecture_rebuilds_without_weights_and_keeps_the_tokenizer(
    vlm: VLMBackbone, tmp_path: Path
) -> None:
    vlm.save_architecture(tmp_path / "vlm")
    assert not list((tmp_path / "vlm").glob("*.safetensors"))
    described = json.loads((tmp_path / "vlm" / "generation_config.json").read_text())
    (tmp_path / "vlm" / "generation_config.json").write_text(
        json.dumps({**described, "eos_token_id": [1, 7]})
    )
    rebuilt = VLMBackbone.from_architecture(tmp_path / "vlm")
    assert rebuilt.model.generation_config.eos_token_id == [1, 7]
    rebuilt.model.generation_config.eos_token_id = described["eos_token_id"]
    assert rebuilt.fingerprint() != vlm.fingerprint()
    rebuilt.load_state_dict(vlm.state_dict())
    assert rebuilt.fingerprint() == vlm.fingerprint()
    assert rebuilt.eval().answer(_images(2), ["red", "the cube"]) == vlm.answer(
        _images(2), ["red", "the cube"]
    )


def test_unknown_words_are_spelled_out_not_lost() -> None:
    vlm = build_small_vlm(["cube"], SmallVLMSize(text_layers=1, **_TINY), seed=0, name="test")
    tokenizer = vlm.processor.tokenizer
    assert tokenizer.tokenize("Cube tux") == ["cube", "t", "##u", "##x"]
    assert tokenizer.unk_token_id not in tokenizer("quick brown fox, 42?\n")["input_ids"]


def test_same_seed_builds_the_same_weights_and_leaves_the_global_generator_alone() -> None:
    size = SmallVLMSize(text_layers=1, **_TINY)
    before = torch.random.get_rng_state()
    first, second = (build_small_vlm(["cube"], size, seed=3, name="test") for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not a transformers model"),
        ({}, "is not a transformers model"),
        (BertConfig().to_dict(), "does not list as image-text-to-text"),
        ({"model_type": "llava"}, "known families are .*paligemma.*docs/vlms.md"),
        (PaliGemmaConfig().to_dict(), "no readable processor"),
    ],
)
def test_a_directory_that_is_no_usable_vlm_is_named_with_what_to_do(
    tmp_path: Path, content: dict[str, object] | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(AegisError, match=sentence) as error:
        VLMBackbone.from_pretrained(tmp_path)
    assert f"--policy.vlm={tmp_path}" in str(error.value)


def test_weights_cut_short_are_named(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_vlm_dir, tmp_path / "vlm")
    file = tmp_path / "vlm" / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(AegisError, match=r"no readable safetensors weights.*download the model again"):
        VLMBackbone.from_pretrained(tmp_path / "vlm")


def test_weights_that_lack_a_part_are_named_and_not_drawn_at_random(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_vlm_dir, tmp_path / "vlm")
    file = tmp_path / "vlm" / "model.safetensors"
    weights = load_file(file)
    lost = next(name for name in weights if "layers.1.mlp" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, file, {"format": "pt"})
    with pytest.raises(AegisError, match=r"lacks weights of its own architecture.*layers\.1\.mlp"):
        VLMBackbone.from_pretrained(tmp_path / "vlm")


def test_inputs_that_the_model_cannot_read_are_a_sentence_wherever_it_reads(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    """A processor that makes more image tokens than the tower gives features."""
    shutil.copytree(tiny_vlm_dir, tmp_path / "vlm")
    file = tmp_path / "vlm" / "processor_config.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps(said | {"image_processor": said["image_processor"] | {"image_seq_length": 9}}))
    vlm = VLMBackbone.from_pretrained(tmp_path / "vlm")
    told = vlm.prepare([_as_floats(_images(1))], ["red"])
    for read in (
        lambda: vlm.encode(told),
        lambda: vlm.encode_with_suffix(told, vlm.reserved_tokens(2).expand(1, -1)),
        lambda: vlm.answer(_images(1), ["red"]),
        lambda: vlm.answer_logits(vlm.answer_inputs(_images(1), ["red"], ["cube"])),
    ):
        with pytest.raises(
            AegisError, match=r"cannot read what its own processor makes .*tokens: 9, features: 4"
        ):
            read()


@pytest.mark.parametrize(
    "said", ["DefaultCPUAllocator: can't allocate memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED"]
)
def test_a_machine_without_memory_is_not_blamed_on_the_processor(tiny_vlm_dir: Path, said: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(said)

    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    vlm.decoder_layers[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match=said):
        vlm.encode(vlm.prepare([_as_floats(_images(1))], ["red"]))


def test_missing_processor_is_named(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_vlm_dir / name).read_bytes())
    with pytest.raises(AegisError, match="no readable processor"):
        VLMBackbone.from_pretrained(tmp_path)


def test_answer_logits_are_the_models_own_whatever_is_asked_beside(tiny_vlm_dir: Path) -> None:
    """Against transformers' own loss on each question alone, without padding."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    questions = ["what colour is the cube", "is it red"]
    answers = ["red", "a long answer"]
    logits_NKV, labels_NK = vlm.answer_logits(vlm.answer_inputs(images, questions, answers))
    for index in range(2):
        alone = vlm.processor(
            images=[[Image.fromarray(images[index])]],
            text=[f"<image>answer en {questions[index]}"],
            suffix=[answers[index]],
            return_tensors="pt",
        )
        valid_K = labels_NK[index] != NO_LABEL
        ours = torch.nn.functional.cross_entropy(logits_NKV[index][valid_K], labels_NK[index][valid_K])
        torch.testing.assert_close(ours, vlm.model(**alone).loss, rtol=1e-4, atol=1e-5)
