"""Protections that train the backbone on something else too: questions again (`replay`), actions as words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, build_optimizer, training_step

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections import action_tokens
from aegis_policy.protections.action_tokens import ActionChunks, UniformBins
from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.loss import answer_loss


def _train(policy: AegisPolicy, make_batch: MakeBatch, steps: int) -> list[dict[str, float]]:
    optimizer = build_optimizer(policy)
    log = []
    for step in range(steps):
        torch.manual_seed(step)
        log.append(training_step(policy, optimizer, make_batch(seed=step % 3)))
    return log


def test_replay_learns_its_questions(make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path) -> None:
    examples = list(load_vqa(str(tiny_vqa), "--vqa", count=6, with_answers=True))

    def loss_after(penalty: float) -> float:
        policy = make_policy("replay", penalty=penalty, replay_batch_size=6, optimizer_lr_backbone=1e-2)
        figures = _train(policy, make_batch, 20)
        assert all(each["vqa_loss"] > 0 for each in figures)
        with torch.no_grad():
            return float(answer_loss(policy.vlm, examples))

    assert loss_after(1.0) < loss_after(0.0) - 0.3


def test_replay_draws_anew_every_step_and_alike_for_the_same_seed(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    first, again = (_train(make_policy("replay"), make_batch, 4) for _ in range(2))
    assert first == again
    assert len({figures["vqa_loss"] for figures in first}) > 1


def test_replay_needs_answers(make_policy: MakePolicy, tiny_vqa: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((tiny_vqa / "0.png").read_bytes())
    (tmp_path / "questions.jsonl").write_text('{"image": "0.png", "question": "what"}')
    policy = make_policy("replay", replay_data=str(tmp_path))
    with pytest.raises(AegisError, match=r"line 1 is not usable \('answer'\).*\"answer\": text"):
        policy.get_optim_params()


def test_the_prefix_does_not_see_what_is_behind_it(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    """Neither in one forward pass with the action tokens, nor in training as against acting."""
    vlm = make_policy("none").vlm.eval()
    inputs = vlm.prepare([make_batch()["observation.images.front"]], make_batch()["task"])
    assert not inputs["attention_mask"].all(), "instructions of different lengths, so there is padding"
    suffix = torch.randint(5, 20, (4, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = vlm.encode(inputs)
        one, logits = vlm.encode_with_suffix(inputs, suffix)
        other, other_logits = vlm.encode_with_suffix(inputs, suffix.flip(1))
    valid = plain.mask
    for alone, with_one, with_other in zip(
        plain.hidden_states, one.hidden_states, other.hidden_states, strict=True
    ):
        torch.testing.assert_close(with_one[valid], alone[valid], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(with_other[valid], with_one[valid], rtol=1e-4, atol=1e-5)
    assert logits.shape[:2] == (4, 7)
    torch.testing.assert_close(logits[:, 0], other_logits[:, 0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits[:, -1], other_logits[:, -1], atol=1e-4)


def test_the_backbone_learns_the_action_tokens(make_policy: MakePolicy, make_batch: MakeBatch) -> None:
    policy = make_policy("knowledge_insulation", optimizer_lr_backbone=3e-3, action_bins=16)
    losses = [figures["action_token_loss"] for figures in _train(policy, make_batch, 30)]
    assert losses[-1] < 0.8 * losses[0]


def test_of_the_embeddings_only_the_reserved_entries_move(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("knowledge_insulation", action_bins=16)
    weight = policy.vlm.model.get_input_embeddings().weight
    before = weight.detach().clone()
    _train(policy, make_batch, 3)
    moved = set((weight.detach() != before).any(1).nonzero().flatten().tolist())
    tokenizer = policy.vlm.processor.tokenizer
    assert len(moved) == 16 and moved == set(policy.vlm.reserved_tokens(16).tolist())
    assert not moved & {*tokenizer.all_special_ids, policy.vlm.model.config.image_token_id}


def test_reserved_words_are_neither_the_image_token_nor_padding_of_the_embedding(
    make_policy: MakePolicy,
) -> None:
    """As in PaliGemma, whose image token is the last word, before rows that stand for nothing."""
    vlm = make_policy("none").vlm
    words = len(vlm.processor.tokenizer)
    vlm.model.config.image_token_id = words - 1
    assert vlm.reserved_tokens(4).tolist() == list(range(words - 5, words - 1))


def test_the_flow_loss_of_an_insulated_backbone_stays_in_the_expert(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("knowledge_insulation", penalty=0.0)
    policy.get_optim_params()
    policy.train()(make_batch())[0].backward()
    assert not any(p.grad is not None and p.grad.any() for p in policy.vlm.parameters())
    assert all(p.grad is not None for p in policy.expert.parameters())


def test_a_number_falls_into_the_bin_around_it_and_padding_does_not_count() -> None:
    tokenizer = UniformBins(bins=64, limit=2.0)
    actions = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0)) * 4 - 2
    actions[0, 0, 0] = 100.0
    is_pad = torch.zeros(3, 4, dtype=torch.bool)
    is_pad[1, 2:] = True
    tokens, counts = tokenizer.encode(ActionChunks(actions, is_pad))
    assert tokens.shape == counts.shape == (3, 8) and tokens.min() >= 0 and tokens.max() == 63
    assert (~counts).sum() == 4 and not counts[1, 4:].any()
    middles = ((tokens + 0.5) / 64 * 2 - 1) * 2.0
    assert ((middles.view(3, 4, 2) - actions.clamp(-2, 2)).abs() <= 2.0 / 64 + 1e-6).all()


def test_another_tokenizer_is_found_by_its_name(
    make_policy: MakePolicy, make_batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "halves"

        def load(self) -> Callable[[Any], UniformBins]:
            return lambda config: UniformBins(2, 1.0)

    monkeypatch.setattr(action_tokens, "entry_points", lambda group: [Point()])
    policy = make_policy("knowledge_insulation", action_tokenizer="halves", action_bins=2)
    assert _train(policy, make_batch, 1)[0]["action_token_loss"] > 0
    with pytest.raises(
        AegisError, match=r"--policy.action_tokenizer=thirds is unknown: choose one of uniform, halves"
    ):
        make_policy("knowledge_insulation", action_tokenizer="thirds").get_optim_params()


def test_more_bins_than_words_are_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match=r"--policy.action_bins=1000000: .*cannot be reserved"):
        make_policy("knowledge_insulation", action_bins=1_000_000).get_optim_params()
