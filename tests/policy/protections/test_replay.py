"""`replay` trains on questions with answers beside the robot."""

from pathlib import Path

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, train

from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.examples import load_vqa
from aegis_policy.vqa.loss import answer_loss


def test_replay_learns_its_questions(make_policy: MakePolicy, make_batch: MakeBatch, tiny_vqa: Path) -> None:
    examples = list(load_vqa(str(tiny_vqa), "--vqa", count=6, with_answers=True))

    def loss_after(penalty: float) -> float:
        policy = make_policy("replay", penalty=penalty, replay_batch_size=6, optimizer_lr_backbone=1e-2)
        figures = train(policy, make_batch, 20)
        assert all(each["vqa_loss"] > 0 for each in figures)
        with torch.no_grad():
            return float(answer_loss(policy.vlm, examples))

    assert loss_after(1.0) < loss_after(0.0) - 0.3


def test_replay_draws_anew_every_step_and_alike_for_the_same_seed(
    make_policy: MakePolicy, make_batch: MakeBatch
) -> None:
    first, again = (train(make_policy("replay"), make_batch, 4) for _ in range(2))
    assert first == again
    assert len({figures["vqa_loss"] for figures in first}) > 1


def test_replay_needs_answers(make_policy: MakePolicy, tiny_vqa: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes((tiny_vqa / "0.png").read_bytes())
    (tmp_path / "questions.jsonl").write_text('{"image": "0.png", "question": "what"}')
    policy = make_policy("replay", replay_data=str(tmp_path))
    with pytest.raises(AegisError, match="line 1 has no answer"):
        policy.get_optim_params()


def test_to_replay_nothing_is_refused(make_policy: MakePolicy) -> None:
    with pytest.raises(AegisError, match="replay_batch_size=0 leaves nothing to replay: give at least 1"):
        make_policy("replay", replay_batch_size=0)
