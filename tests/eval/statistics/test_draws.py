"""Draws with replacement: what they are, and that nobody waits for the same ones twice."""

import numpy as np
import pytest

from aegis_eval.statistics import draws as module
from aegis_eval.statistics.draws import draws


def test_everything_is_drawn_as_often_as_there_are_things() -> None:
    drawn_RC = np.concatenate(list(draws(7, 5000, seed=1)))
    assert drawn_RC.shape == (5000, 7)
    assert (drawn_RC.sum(1) == 7).all()
    assert drawn_RC.mean(0) == pytest.approx(np.ones(7), abs=0.05)
    assert drawn_RC.var() == pytest.approx(1 - 1 / 7, rel=0.05), "binomial of 7 trials"


def test_seeds_and_streams_draw_otherwise() -> None:
    first, *others = (
        np.concatenate(list(draws(20, 50, *which))) for which in ((0,), (1,), (0, (0,)), (0, (1,)))
    )
    assert all((first != other).any() for other in others)
    assert (others[1] != others[2]).any()


def test_the_same_draws_are_drawn_once_and_nobody_can_spoil_them() -> None:
    (first,), (again,) = draws(30, 40, seed=2), draws(30, 40, seed=2)
    assert first is again
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_draws_that_are_too_many_to_keep_are_the_same_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = np.concatenate(list(draws(300, 80, seed=3)))
    monkeypatch.setattr(module, "_KEPT", 0)
    monkeypatch.setattr(module, "_BLOCK", 300 * 7)
    blocks = list(draws(300, 80, seed=3))
    assert len(blocks) == 12
    assert (np.concatenate(blocks) == kept).all()
