"""`aegis-anchor`: what it reads, against the same quantities taken one question at a time; what it refuses."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from PIL import Image
from random_data import write_random_questions

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.work.anchor import make_anchor
from aegis_policy.anchors.building import AnchorBuilder
from aegis_policy.isolation import Anchor
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample, load_vqa

COUNT = 7
LAYER = "model.language_model.layers.1.mlp.up_proj"


def _anchor(vlm: Path, out: Path, **options: Any) -> Anchor:
    return make_anchor(
        AnchorConfig(
            **{
                "vlm": str(vlm),
                "vqa": "tabletop",
                "samples": COUNT,
                "out": out / "anchor.safetensors",
                "batch_size": 3,
                **options,
            }
        )
    )


def _samples() -> list[VQAExample]:
    return list(load_vqa("tabletop", "--vqa", count=COUNT))


def test_an_anchor_belongs_to_the_model_it_was_made_from(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    _anchor(tiny_vlm_dir, tmp_path)
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    loaded = Anchor.load(tmp_path / "anchor.safetensors")
    loaded.check(vlm.num_layers, vlm.hidden_size)
    assert loaded.metadata["fingerprint"] == vlm.fingerprint()
    assert loaded.metadata["samples"] == str(COUNT)
    assert loaded.factors.keys() == vlm.linear_layers.keys()
    assert not loaded.gaussians and not loaded.importance, "the default protection needs none"
    for name, factors in loaded.factors.items():
        assert factors.gradient_K is not None
        kept = len(factors.inputs.values_K)  # a few pictures span fewer
        assert kept <= round(0.07 * vlm.linear_layers[name].in_features)
    assert len(loaded.factors[LAYER].inputs.values_K) == round(0.07 * vlm.linear_layers[LAYER].in_features)
    decoder = "model.language_model.layers.1."
    for first, others in (("self_attn.q_proj", ("k_proj", "v_proj")), ("mlp.gate_proj", ("up_proj",))):
        for other in others:
            shared = loaded.factors[f"{decoder}{first.split('.')[0]}.{other}"]
            assert shared.inputs is loaded.factors[decoder + first].inputs


def test_moments_are_those_of_the_valid_tokens(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    gaussian = _anchor(tiny_vlm_dir, tmp_path, kinds=["gaussian"]).gaussians["all"]
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    with torch.no_grad():
        states = [
            vlm.encode(vlm.question_inputs([each.image], [each.question])).hidden_states[1][0]
            for each in _samples()
        ]
    tokens = torch.cat(states).double()
    torch.testing.assert_close(gaussian.mean_LD[1].double(), tokens.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gaussian.std_LD[1].double(), tokens.std(0, correction=0), atol=1e-4, rtol=1e-4)


def test_input_covariances_are_those_of_question_and_own_answer_without_padding(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    """The answers' tokens are fed to the model one by one, as it says them, and in one piece here."""
    anchor = _anchor(tiny_vlm_dir, tmp_path, kinds=["subspace"], share=1.0)
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    tokens = []
    for each in _samples():
        inputs = vlm.question_inputs([each.image], [each.question])
        said = vlm.model.generate(**inputs, do_sample=False, max_new_tokens=16)
        said = said[:, :-1]  # the last is not read
        seen: list[torch.Tensor] = []
        hook = vlm.linear_layers[LAYER].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))  # noqa: B023
        types = torch.full_like(said, vlm.family.causal_type)
        types[:, : inputs["input_ids"].shape[1]] = inputs["token_type_ids"]
        with torch.no_grad():
            vlm.encode(
                inputs | {"input_ids": said, "token_type_ids": types, "attention_mask": torch.ones_like(said)}
            )
        hook.remove()
        tokens += seen
    x_ND = torch.cat(tokens)
    spectrum = anchor.factors[LAYER].inputs
    rebuilt = spectrum.vectors_DK * spectrum.values_K @ spectrum.vectors_DK.T
    covariance = x_ND.T @ x_ND / len(x_ND)
    torch.testing.assert_close(rebuilt, covariance, rtol=0, atol=1e-3 * float(covariance.trace()))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"samples": 0}, "--samples=0 must be at least 1"),
        ({"share": 0.0}, "--share=0.0 must lie above 0 and not above 1"),
        ({"share": 1.5}, "--share=1.5 must lie above 0 and not above 1"),
        ({"kinds": []}, r"--kinds=\[\] must name one or more of gaussian"),
        ({"kinds": ["anchor"]}, r"--kinds=\['anchor'\] must name"),
        *(
            ({"vqa": vqa}, "names no source, or none beside a +")
            for vqa in ("", "+", "tabletop+", "+tabletop", "tabletop++tabletop")
        ),
    ],
)
def test_flags_that_cannot_be_are_named(
    tiny_vlm_dir: Path, tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(AegisError, match=sentence):
        _anchor(tiny_vlm_dir, tmp_path, **options)
    assert not (tmp_path / "anchor.safetensors").exists()


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (None, "neither one of custom, .*tabletop.* nor a folder with a questions.jsonl"),
        ("", "is empty"),
        ('{"image": "absent.png", "question": "what?"}', "line 1 is not usable"),
        ("not json", "line 1 is not usable"),
    ],
)
def test_vqa_folders_that_cannot_be_read_are_named(
    tiny_vlm_dir: Path, tmp_path: Path, lines: str | None, sentence: str
) -> None:
    if lines is not None:
        (tmp_path / "questions.jsonl").write_text(lines)
    config = AnchorConfig(vlm=str(tiny_vlm_dir), vqa=str(tmp_path), out=tmp_path / "anchor.safetensors")
    with pytest.raises(AegisError, match=sentence):
        make_anchor(config)
    assert not config.out.exists()


def _dataset(tiny_dataset: Path) -> LeRobotDataset:
    return LeRobotDataset("local/tiny", root=tiny_dataset)


def test_robot_frames_are_read_as_the_policy_reads_them(
    tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    anchor = _anchor(
        tiny_vlm_dir, tmp_path, vqa=str(tiny_dataset), kinds=["gaussian", "subspace"], samples=99
    )
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    dataset = _dataset(tiny_dataset)
    states = []
    for index in range(len(dataset)):
        frame = dataset[index]
        inputs = vlm.prepare([frame[key][None] for key in dataset.meta.camera_keys], [frame["task"]])
        with torch.no_grad():
            states.append(vlm.encode(inputs).hidden_states[0][0])
    tokens = torch.cat(states).double()
    gaussian = anchor.gaussians["all"]
    assert gaussian.count == len(tokens) and anchor.metadata["samples"] == str(len(dataset))
    torch.testing.assert_close(gaussian.mean_LD[0].double(), tokens.mean(0), atol=1e-5, rtol=1e-5)
    assert anchor.factors.keys() == vlm.linear_layers.keys()
    assert str(tiny_dataset) in anchor.metadata["source"]


def test_both_domains_come_together_but_only_questions_have_answers(
    tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    kinds = ["gaussian", "subspace", "fisher"]
    alone = _anchor(tiny_vlm_dir, tmp_path, kinds=kinds)
    both = _anchor(tiny_vlm_dir, tmp_path, kinds=kinds, vqa=f"tabletop+{tiny_dataset}")
    assert both.metadata["samples"] == str(2 * COUNT)
    assert both.gaussians["all"].count > alone.gaussians["all"].count
    for name, importance in alone.importance.items():
        torch.testing.assert_close(both.importance[name], importance)
    assert not torch.allclose(both.factors[LAYER].inputs.values_K, alone.factors[LAYER].inputs.values_K)
    with pytest.raises(
        AegisError, match=r"robot frames and running text have no answers, which fisher is about"
    ):
        _anchor(tiny_vlm_dir, tmp_path, vqa=str(tiny_dataset), kinds=["fisher"])


_PROSE = ("the red cube lies left of the bowl", "a robot reaches for the blue ball and lifts it")


def _texts(folder: Path) -> tuple[str, str]:
    """Running text, and questions without pictures, as `--vqa` names them."""
    prose, questions = folder / "prose.txt", folder / "general.jsonl"
    prose.write_text("\n\n".join(_PROSE))
    questions.write_text('{"question": "what colour is the sky?", "answer": "blue"}\n' * 3)
    return f"text:{prose}", f"text:{questions}"


def test_running_text_is_read_plain_by_the_language_model_alone(tiny_vlm_dir: Path, tmp_path: Path) -> None:
    prose, _ = _texts(tmp_path)
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    seen: list[torch.Tensor] = []
    vlm.linear_layers[LAYER].register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
    for paragraph in _PROSE:
        vlm.read(paragraph)
    x_ND = torch.cat(seen)
    alone, tabletop, both = (
        _anchor(tiny_vlm_dir, tmp_path, vqa=vqa, share=1.0)
        for vqa in (prose, "tabletop", f"tabletop+{prose}")
    )
    assert alone.metadata["samples"] == "2" and both.metadata["samples"] == str(COUNT + 2)
    prefix = vlm.family.decoder_layers
    assert alone.factors.keys() == {name for name in vlm.linear_layers if name.startswith(prefix)}
    torch.testing.assert_close(alone.factors[LAYER].inputs.total, x_ND.square().sum() / len(x_ND))
    assert alone.factors[LAYER].gradient_K is None, "no answer is known whose gradient it could be"
    assert both.factors.keys() == vlm.linear_layers.keys()
    for name, factors in both.factors.items():
        same = torch.equal(factors.inputs.values_K, tabletop.factors[name].inputs.values_K)
        assert same != name.startswith(prefix), name


def test_questions_without_pictures_alone_make_an_anchor_of_the_language_model(
    tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    _, questions = _texts(tmp_path)
    anchor = _anchor(tiny_vlm_dir, tmp_path, vqa=questions, kinds=["subspace", "fisher"])
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    prefix = vlm.family.decoder_layers
    assert anchor.factors.keys() == {name for name in vlm.linear_layers if name.startswith(prefix)}
    assert all(name.startswith(prefix) for name in anchor.importance) and anchor.importance
    assert all(each.gradient_K is not None for each in anchor.factors.values())


@pytest.mark.parametrize(
    ("vqa", "kind", "sentence"),
    [
        ("{prose}", "fisher", "running text have no answers, which fisher is about"),
        ("text:absent.txt", "subspace", r"^--vqa=text:absent\.txt names no file"),
    ],
)
def test_kinds_that_need_answers_refuse_text(
    tiny_vlm_dir: Path, tmp_path: Path, vqa: str, kind: str, sentence: str
) -> None:
    prose, _ = _texts(tmp_path)
    with pytest.raises(AegisError, match=sentence):
        _anchor(tiny_vlm_dir, tmp_path, vqa=vqa.format(prose=prose), kinds=[kind])
    assert not (tmp_path / "anchor.safetensors").exists()


def test_a_pass_that_was_stopped_is_continued_to_the_same_anchor(
    tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ["gaussian", "subspace", "fisher"]
    whole = _anchor(tiny_vlm_dir, tmp_path / "whole", kinds=kinds)
    monkeypatch.setattr("aegis_policy.anchors.unfinished.SAVE_SECONDS", 0.0)
    seen: list[int] = []
    add = AnchorBuilder.add_questions

    def stopped(self: AnchorBuilder, batch: Any, number: int) -> None:
        seen.append(number)
        if len(seen) == 3:
            raise KeyboardInterrupt
        add(self, batch, number)

    monkeypatch.setattr(AnchorBuilder, "add_questions", stopped)
    with pytest.raises(KeyboardInterrupt):
        _anchor(tiny_vlm_dir, tmp_path, kinds=kinds)
    assert not (tmp_path / "anchor.safetensors").exists()
    with pytest.raises(AegisError, match="share"):
        _anchor(tiny_vlm_dir, tmp_path, kinds=kinds, share=0.0)
    continued = _anchor(tiny_vlm_dir, tmp_path, kinds=kinds)
    assert seen == [0, 1, 2, 2]
    assert [path.name for path in tmp_path.glob(".*")] == [], "what was kept of it is gone"
    torch.testing.assert_close(continued.gaussians["all"].mean_LD, whole.gaussians["all"].mean_LD)
    torch.testing.assert_close(continued.gaussians["all"].noise_LD, whole.gaussians["all"].noise_LD)
    for name, factors in whole.factors.items():
        again = continued.factors[name]
        torch.testing.assert_close(again.inputs.values_K, factors.inputs.values_K, rtol=1e-4, atol=1e-6)
    for name, importance in whole.importance.items():
        torch.testing.assert_close(continued.importance[name], importance, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("change", ["a question's picture", "a recorded file", "nothing"])
def test_a_pass_begins_anew_where_what_it_saw_has_changed(
    change: str, tiny_vlm_dir: Path, tiny_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_policy.anchors.unfinished.SAVE_SECONDS", 0.0)
    questions = write_random_questions(tmp_path / "vqa")
    data = shutil.copytree(tiny_dataset, tmp_path / "data")
    flags: dict[str, Any] = {
        "vqa": f"{questions}+{data}",
        "kinds": ["gaussian"],
        "samples": 2,
        "batch_size": 1,
    }
    with monkeypatch.context() as patch:
        patch.setattr(Anchor, "save", lambda *_: Path("/dev/full").write_text("x"))
        with pytest.raises(AegisError, match="No space left on device"):
            _anchor(tiny_vlm_dir, tmp_path, **flags)
    for picture in questions.glob("*.png") if change == "a question's picture" else ():
        Image.new("RGB", (32, 32)).save(picture)
    if change == "a recorded file":
        os.utime(next(data.glob("data/**/*.parquet")), (0, 0))
    asked: list[int] = []
    add = AnchorBuilder.add_questions
    monkeypatch.setattr(AnchorBuilder, "add_questions", lambda *each: asked.append(1) or add(*each))
    _anchor(tiny_vlm_dir, tmp_path, **flags)
    assert len(asked) == (0 if change == "nothing" else 2)


def test_another_vlm_than_the_embedded_one_needs_questions_of_its_own(tiny_vlm_dir: Path, tmp_path: Path):
    with pytest.raises(AegisError, match=r"^--vqa is missing: say what .* must go on answering"):
        make_anchor(AnchorConfig(vlm=str(tiny_vlm_dir), out=tmp_path / "anchor.safetensors"))
    assert list(tmp_path.iterdir()) == []


def test_fewer_questions_than_asked_for_are_told(
    tiny_vlm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    questions = write_random_questions(tmp_path / "vqa")
    _anchor(tiny_vlm_dir, tmp_path, vqa=str(questions), kinds=["gaussian", "subspace"])
    told = capsys.readouterr()
    assert "4/4" in told.err, "the progress bar ends where the questions do"
    assert "gaussian, subspace from 4 samples (7 were asked for: there are no more)" in told.out
    assert "directions of the inputs of a linear layer (least, median and most of" in told.out
    assert "of the gradient of its answers." in told.out


def test_a_pass_whose_anchor_could_not_be_saved_is_not_lost(
    tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aegis_policy.anchors.unfinished.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Anchor, "save", lambda *_: Path("/dev/full").write_text("x"))
        with pytest.raises(
            AegisError, match=r"anchor\.safetensors cannot be written \(No space left on device\)"
        ):
            _anchor(tiny_vlm_dir, tmp_path / "out", kinds=["gaussian"])
    monkeypatch.setattr(AnchorBuilder, "add_questions", lambda *_: pytest.fail("a batch is read again"))
    anchor = _anchor(tiny_vlm_dir, tmp_path / "out", kinds=["gaussian"])
    assert anchor.metadata["samples"] == str(COUNT)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["anchor.safetensors"]
