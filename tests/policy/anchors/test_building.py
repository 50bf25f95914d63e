"""What is gathered of a VLM, against the same quantities taken one question at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aegis_policy.anchors.answers import drawing
from aegis_policy.anchors.building import AnchorBuilder, build_anchor
from aegis_policy.anchors.factors import InputFactors
from aegis_policy.anchors.kinds import KINDS
from aegis_policy.anchors.unfinished import UnfinishedPass
from aegis_policy.isolation import Anchor, fisher_cotangents, global_moments, w2_squared
from aegis_policy.isolation._rows import Rows
from aegis_policy.isolation._sketch import CovarianceSketch
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample
from aegis_policy.vqa.loss import answer_loss

COUNT = 7
_QUESTIONS = ("what is on the table?", "what colour is the cube", "how many?")


def _examples(count: int = COUNT) -> list[VQAExample]:
    """Random pictures of different brightness, with questions of different lengths, which batches pad."""
    rng = np.random.default_rng(0)
    highest = rng.integers(2, 256, count)
    pictures = [rng.integers(0, each, (32, 32, 3), dtype=np.uint8) for each in highest]
    return [
        VQAExample(picture, _QUESTIONS[index % len(_QUESTIONS)]) for index, picture in enumerate(pictures)
    ]


def test_gathering_leaves_no_gradient_behind_and_repeats_exactly(tiny_vlm_dir: Path) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    kinds = ["gaussian", "subspace", "fisher"]
    first, again = (
        build_anchor(vlm, _examples(), kinds=kinds, source="test", batch_size=3) for _ in range(2)
    )
    assert all(p.grad is None and p.requires_grad for p in vlm.parameters())
    for name, factors in first.factors.items():
        assert torch.equal(factors.inputs.values_K, again.factors[name].inputs.values_K)
    for name, importance in first.importance.items():
        assert torch.equal(importance, again.importance[name])


def test_importances_are_squared_gradients_of_single_answers_relative_to_their_mean(
    tiny_vlm_dir: Path,
) -> None:
    """Two answers, with the builder's signs."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    samples = _examples()[:2]
    importance = build_anchor(vlm, samples, kinds=["fisher"], source="test", batch_size=2, seed=5).importance
    named = dict(vlm.model.named_parameters())
    learns = {
        id(p) for part in (vlm.vision_tower, vlm.projector, vlm.decoder_layers) for p in part.parameters()
    }
    assert {id(named[name]) for name in importance} == learns

    squares = {name: torch.zeros_like(values) for name, values in importance.items()}
    answers = vlm.answer([each.image for each in samples], [each.question for each in samples])
    for index, (each, answer) in enumerate(zip(samples, answers, strict=True)):
        logits_NKV, _ = vlm.answer_logits(vlm.answer_inputs([each.image], [each.question], [answer]))
        for cotangent in fisher_cotangents(logits_NKV.detach(), generator=drawing([5, 0, index])):
            vlm.zero_grad()
            logits_NKV.backward(cotangent, retain_graph=True)
            for name, total in squares.items():
                if named[name].grad is not None:
                    total += named[name].grad.square()
    mean = torch.cat([total.flatten() for total in squares.values()]).mean()
    for name, total in squares.items():
        torch.testing.assert_close(importance[name], total / mean, rtol=1e-3, atol=1e-3)


def test_the_noise_floor_is_the_distance_of_batches_of_the_anchors_own_samples(tiny_vlm_dir: Path) -> None:
    """What batches of four are found to be away on average, against the floor told by batches of two."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir).eval()
    examples = _examples(96)
    gaussian = build_anchor(vlm, examples, kinds=["gaussian"], source="test", batch_size=2).gaussians["all"]
    found = []
    for start in range(0, len(examples), 4):
        batch = examples[start : start + 4]
        inputs = vlm.question_inputs([each.image for each in batch], [each.question for each in batch])
        with torch.no_grad():
            prefix = vlm.encode(inputs)
        moments = global_moments(prefix.hidden_states, prefix.mask)
        found.append(float(w2_squared(moments.mean_LD, moments.std_LD, gaussian.mean_LD, gaussian.std_LD)))
    floor = gaussian.noise_floor(4)
    assert floor is not None
    assert floor == pytest.approx(sum(found) / len(found), rel=0.35)


def test_padding_is_in_no_layers_covariance(tiny_vlm_dir: Path) -> None:
    """All questions at once, of which the shorter are padded, against one at a time."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    padded, alone = (
        build_anchor(vlm, _examples(), kinds=["subspace"], source="test", batch_size=size).factors
        for size in (COUNT, 1)
    )
    lengths = vlm.question_inputs(
        [each.image for each in _examples()], [each.question for each in _examples()]
    )
    assert not lengths["attention_mask"].all(), "there is padding"
    for name, factors in padded.items():
        torch.testing.assert_close(factors.inputs.total, alone[name].inputs.total, rtol=1e-3, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_anchor_holds_its_kind_alone(tiny_vlm_dir: Path, kind: str) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    anchor = build_anchor(vlm, _examples(), kinds=[kind], source="test", batch_size=4)
    served = {
        "gaussian": bool(anchor.gaussians),
        "subspace": bool(anchor.factors),
        "fisher": bool(anchor.importance),
    }
    assert {name for name, holds in served.items() if holds} == {kind}


def test_only_the_same_pass_is_continued(
    tiny_vlm_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    builder = AnchorBuilder(vlm, ["gaussian"])
    builder.add(_examples(2), 0)
    unfinished = UnfinishedPass(tmp_path / "pass", "this")
    unfinished.save(builder, 1, 2)
    assert not unfinished.path.exists(), "nothing is written before its time"
    monkeypatch.setattr("aegis_policy.anchors.unfinished.SAVE_SECONDS", 0.0)
    unfinished.save(builder, 1, 2)
    other = AnchorBuilder(vlm, ["gaussian"])
    assert UnfinishedPass(unfinished.path, "another").restore(other) == (0, 0)
    assert UnfinishedPass(unfinished.path, "this").restore(other) == (1, 2)
    for name, expected in builder.state().items():
        assert torch.equal(other.state()[name], expected)
    unfinished.path.write_bytes(unfinished.path.read_bytes()[:40])
    assert UnfinishedPass(unfinished.path, "this").restore(other) == (0, 0), "a torn file is no pass"
    unfinished.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_one_question_makes_an_anchor_and_none_is_one_sentence(
    tiny_vlm_dir: Path, tmp_path: Path, kind: str
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    made = build_anchor(vlm, _examples(1), kinds=[kind], source="test", batch_size=4)
    made.save(tmp_path / "anchor.safetensors")
    Anchor.load(tmp_path / "anchor.safetensors")
    with pytest.raises(AegisError, match=r"anchor of .* cannot be made: there is no sample in test"):
        build_anchor(vlm, [], kinds=[kind], source="test", batch_size=4)


def test_the_gradient_along_each_direction_is_that_of_the_answers_own_loss(tiny_vlm_dir: Path) -> None:
    """Against the gradients of whole weights; nothing of the pass is left behind in them."""
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    examples = _examples(3)
    factors = build_anchor(vlm, examples, kinds=["subspace"], source="test", batch_size=3).factors
    assert all(p.grad is None and p.requires_grad for p in vlm.parameters())
    answers = vlm.answer([each.image for each in examples], [each.question for each in examples])
    told = [
        VQAExample(each.image, each.question, answer) for each, answer in zip(examples, answers, strict=True)
    ]
    answer_loss(vlm, told).backward()
    for name, layer in vlm.linear_layers.items():
        gradient_ED, shares_K = layer.weight.grad, factors[name].gradient_K
        assert gradient_ED is not None and shares_K is not None
        expected_K = (gradient_ED @ factors[name].inputs.vectors_DK).square().sum(
            0
        ) / gradient_ED.square().sum()
        torch.testing.assert_close(shares_K, expected_K, rtol=1e-3, atol=1e-6)
        assert 0 < shares_K.sum() <= 1


def test_pictures_are_thinned_once_enough_was_seen_and_all_tokens_counted(
    tiny_vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)

    def gathered() -> InputFactors:
        builder = AnchorBuilder(vlm, ["subspace"])
        for number in range(3):
            builder.add_questions(_examples(), number)
        part = builder._parts["subspace"]
        assert isinstance(part, InputFactors)
        return part

    every = gathered()
    monkeypatch.setattr("aegis_policy.anchors.factors.ENOUGH", 0)
    some = gathered()
    for whole, thinned in ((every.decoder, some.decoder), (every.vision, some.vision)):
        assert thinned.seen == pytest.approx(whole.seen, rel=0.1)
        for name, factors in whole.factors().items():
            total = thinned.factors()[name].inputs.total
            torch.testing.assert_close(total, factors.inputs.total, rtol=0.1, atol=0)
        assert set(thinned.state()) == set(whole.state())
        assert not all(torch.equal(x, whole.state()[key]) for key, x in thinned.state().items())


def test_text_is_thinned_once_enough_of_it_was_seen_whatever_pictures_came_before(
    tiny_vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    text = "the red cube lies left of the bowl and the blue ball right of it"
    count = vlm.text_inputs(text)["input_ids"].shape[1]
    part = InputFactors(vlm, 0.17, seed=0)
    monkeypatch.setattr("aegis_policy.anchors.factors.ENOUGH", 3 * count / part.decoder.widest)
    taken: list[int] = []
    update = CovarianceSketch.update

    def counted(self: CovarianceSketch, x_ND: torch.Tensor, rows: Rows) -> None:
        taken.append(len(rows.of(x_ND)[0]))
        update(self, x_ND, rows)

    monkeypatch.setattr(CovarianceSketch, "update", counted)
    builder = AnchorBuilder(vlm, ["subspace"])
    builder.add_questions(_examples(), 0)
    of_each = []
    for _ in range(8):
        taken.clear()
        builder.add_paragraphs([text])
        of_each.append({*taken})
    assert of_each[:3] == [{count}] * 3
    assert all(len(each) == 1 for each in of_each) and sum(max(each) for each in of_each[3:]) == count
