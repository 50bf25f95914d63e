"""Actions as tokens: bins, and tokenizers of other packages."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from training_steps import MakeBatch, MakePolicy, train

from aegis_policy.protections import action_tokens
from aegis_policy.protections.action_tokens import ActionChunks, UniformBins
from aegis_policy.support.errors import AegisError


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
    assert train(policy, make_batch, 1)[0]["action_token_loss"] > 0
    with pytest.raises(
        AegisError, match=r"--policy.action_tokenizer=thirds is unknown: choose one of uniform, halves"
    ):
        make_policy("knowledge_insulation", action_tokenizer="thirds").get_optim_params()
