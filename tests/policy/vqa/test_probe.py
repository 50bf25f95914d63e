"""The probe: what the backbone still answers in training, and where the gradient of the questions lies."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from official_files import load_questions
from PIL import Image
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError


def _probed(make_policy: MakePolicy, tiny_vqa: Path, protection: str = "none", **options: Any) -> AegisPolicy:
    return make_policy(
        protection, vqa_probe_freq=2, vqa_probe_data=str(tiny_vqa), vqa_probe_samples=6, **options
    )


def test_the_probe_says_what_the_backbone_answers(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _probed(make_policy, tiny_vqa)
    optimizer = build_optimizer(policy)
    asked = []

    def answer(images: list[Any], questions: list[str], max_new_tokens: int) -> list[str]:
        asked.append(questions)
        return ["Red."] * len(images)

    monkeypatch.setattr(policy.vlm, "answer", answer)
    accuracies = [
        training_step(policy, optimizer, make_batch(seed=seed))["vqa_accuracy"] for seed in range(5)
    ]
    assert accuracies == [pytest.approx(2 / 6)] * 5
    assert len(asked) == 3, "before steps 1, 3 and 5"


def test_the_probe_leaves_the_training_as_it_is(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path
) -> None:
    """Weights, modes and draws; the probe's own gradient ends up nowhere. What blocks hold it puts back before it asks,
    so here they are held in every step."""
    weights, generators, probed = [], [], []
    for options in ({}, {"vqa_probe_freq": 1, "vqa_probe_data": str(tiny_vqa), "vqa_probe_samples": 6}):
        policy = make_policy("aegis", anchor="gaussian+subspace", optimizer_lr=5e-4, **options)
        optimizer = build_optimizer(policy)
        for projector in policy.protection.projectors:
            projector.every = 1
        torch.manual_seed(3)
        for seed in range(2):
            figures = training_step(policy, optimizer, make_batch(seed=seed))
            assert all(module.training for module in policy.modules())
        weights.append([p.detach().clone() for p in policy.parameters()])
        generators.append(torch.get_rng_state())
        probed.append({name for name in figures if "vqa" in name})
    for plain, asked in zip(*weights, strict=True):
        torch.testing.assert_close(asked, plain, rtol=0, atol=1e-6)
    assert torch.equal(*generators)
    assert probed == [set(), {"vqa_accuracy", "gaussian_vqa_cosine", "subspace_vqa_gradient_blocked"}]


def test_the_probe_shows_where_the_questions_gradient_lies(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path
) -> None:
    policy = _probed(make_policy, tiny_vqa, "aegis", anchor="gaussian+subspace")
    optimizer = build_optimizer(policy)
    figures = [training_step(policy, optimizer, make_batch(seed=seed)) for seed in range(3)]
    assert len({tuple(each) for each in figures}) == 1, "the keys never change"
    for each in figures:
        assert -1 <= each["gaussian_vqa_cosine"] <= 1
        assert 0 < each["subspace_vqa_gradient_blocked"] < 1
    assert (
        figures[0]["subspace_vqa_gradient_blocked"]
        == figures[1]["subspace_vqa_gradient_blocked"]
        != figures[2]["subspace_vqa_gradient_blocked"]
    )


def test_blocks_of_everything_hold_the_whole_gradient(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path
) -> None:
    policy = _probed(make_policy, tiny_vqa, "aegis", anchor="subspace", anchor_share=1.0)
    figures = training_step(policy, build_optimizer(policy), make_batch())
    assert figures["subspace_vqa_gradient_blocked"] > 0.9


def test_a_probe_without_answers_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    policy = make_policy("none", vqa_probe_freq=1, vqa_probe_data=str(tmp_path))
    with pytest.raises(AegisError, match=r"--policy.vqa_probe_data=.* is neither one of custom, .*tabletop"):
        policy.get_optim_params()


def _write_answered(folder: Path) -> Path:
    """Twenty questions of ten people: to six most said red, to ten one of them did, to four nobody did."""
    people = [["red"] * 8 + ["grey"] * 2] * 6 + [["blue"] * 9 + ["red"]] * 10 + [["blue"] * 10] * 4
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    lines = [
        {"image": "0.png", "question": f"which colour {n}?", "answers": each} for n, each in enumerate(people)
    ]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_the_probe_scores_as_the_benchmark_does(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact match with the commonest answer would say 30 %."""
    folder = _write_answered(tmp_path / "own")
    policy = make_policy("none", vqa_probe_freq=1, vqa_probe_data=str(folder), vqa_probe_samples=20)
    monkeypatch.setattr(policy.vlm, "answer", lambda images, *_: ["Red."] * len(images))
    figures = training_step(policy, build_optimizer(policy), make_batch())
    assert figures["vqa_accuracy"] == pytest.approx(0.45)
    samples, _ = load_questions("custom", str(folder), None, 20)
    assert sum(each.score("Red.") for each in samples) / 20 == pytest.approx(0.45)


def test_questions_without_a_picture_are_asked_in_training(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"question": f"what is {n}?", "answers": [str(n), "cube"]} for n in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    probe = {"vqa_probe_freq": 1, "vqa_probe_data": f"text:{tmp_path / 'q.jsonl'}"}
    policy = make_policy("aegis", anchor="subspace", **probe)
    asked = []

    def answer(images: list[None], questions: list[str], max_new_tokens: int) -> list[str]:
        asked.append((set(images), max_new_tokens))
        return ["It is 3 of them."] * len(questions)

    monkeypatch.setattr(policy.vlm, "answer", answer)
    figures = training_step(policy, build_optimizer(policy), make_batch())
    assert figures["vqa_accuracy"] == 0.25 and asked == [({None}, 24)]
    assert 0 < figures["subspace_vqa_gradient_blocked"] < 1


def test_running_text_is_compared_with_its_first_reading(
    make_policy: MakePolicy, make_batch: MakeBatch, tmp_path: Path
) -> None:
    texts = ["push the red cube to the left", "the green sphere"]
    (tmp_path / "prose.txt").write_text("\n\n".join(texts))
    policy = make_policy("none", vqa_probe_freq=2, vqa_probe_data=f"text:{tmp_path / 'prose.txt'}")
    optimizer = build_optimizer(policy)
    before = copy.deepcopy(policy.vlm)
    figures = [training_step(policy, optimizer, make_batch(seed=seed)) for seed in range(2)]
    assert figures[0] | {"text_kl": 0.0, "text_agreement": 1.0} == pytest.approx(figures[0], abs=1e-6)
    now = copy.deepcopy(policy.vlm)
    last = training_step(policy, optimizer, make_batch(seed=2))
    kl, same = [], []
    for text in texts:
        p, q = (vlm.read(text).logits_STV[0, :-1].double().log_softmax(-1) for vlm in (before, now))
        kl += (p.exp() * (p - q)).sum(-1).tolist()
        same += (p.argmax(-1) == q.argmax(-1)).tolist()
    assert last["text_kl"] == pytest.approx(sum(kl) / len(kl), rel=1e-2) and last["text_kl"] > 0
    assert last["text_agreement"] == pytest.approx(sum(same) / len(same))
    assert "vqa_accuracy" not in last
    policy.save_pretrained(tmp_path / "saved")  # its card has no answers to tell of


@pytest.mark.parametrize(("name", "sentence"), [("p.txt", "holds no paragraph"), ("p.md", "must end with")])
def test_a_text_that_cannot_be_probed_is_one_sentence(
    make_policy: MakePolicy, tmp_path: Path, name: str, sentence: str
) -> None:
    (tmp_path / name).write_text("\n")
    policy = make_policy("none", vqa_probe_freq=1, vqa_probe_data=f"text:{tmp_path / name}")
    with pytest.raises(AegisError, match=sentence):
        policy.get_optim_params()
