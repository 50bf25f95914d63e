"""`knowledge_insulation` trains the backbone on actions as words, and lets the flow loss stay in the expert."""

from pathlib import Path

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, train

from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.loss import answer_loss


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
    losses = [figures["action_token_loss"] for figures in train(policy, make_batch, 30)]
    assert losses[-1] < 0.8 * losses[0]


def test_of_the_embeddings_only_the_reserved_entries_move(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    policy = make_policy("knowledge_insulation", action_bins=16)
    weight = policy.vlm.model.get_input_embeddings().weight
    before = weight.detach().clone()
    train(policy, make_batch, 3)
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


def test_answers_are_learned_beside_the_actions(
    make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path
) -> None:
    examples = list(load_vqa(str(tiny_vqa), "--vqa", count=6, with_answers=True))

    def after(questions: int) -> tuple[float, dict[str, float]]:
        policy = make_policy("knowledge_insulation", replay_batch_size=questions, optimizer_lr_backbone=1e-2)
        figures = train(policy, make_batch, 20)
        with torch.no_grad():
            return float(answer_loss(policy.vlm, examples)), figures[-1]

    (with_them, figures), (without, others) = after(6), after(0)
    assert with_them < without - 0.3
    assert figures["vqa_loss"] > 0 and "vqa_loss" not in others
    assert others["action_token_loss"] > 0


def test_what_the_questions_are_changes_nothing_where_none_is_asked(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match=r"replay_samples changes nothing with --policy.replay_batch_size=0"):
        make_policy("knowledge_insulation", replay_samples=7, replay_batch_size=0)


def test_more_bins_than_words_are_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match=r"--policy.action_bins=1000000: .*cannot be reserved"):
        make_policy("knowledge_insulation", action_bins=1_000_000).get_optim_params()
