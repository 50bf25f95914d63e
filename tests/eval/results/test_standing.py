"""How one protection stands to the others, in both skills at once."""

from dataclasses import replace

import numpy as np
import pytest

from aegis_eval.results.compared import ComparedRun
from aegis_eval.results.standing import Standing, standings
from aegis_eval.statistics.resampling import Estimate

EPISODES, SCENES = 400, 500


def _runs(name: str, success: float, accuracy: float, seeds: int = 3) -> list[ComparedRun]:
    """The first episodes and questions are the right ones, as many as asked for, so that differences are exact."""

    def first(share: float, count: int) -> str:
        return "1" * round(share * count) + "0" * (count - round(share * count))

    rollouts = {split: {"reach": first(success, EPISODES)} for split in ("test", "unseen")}
    answers = {name: first(accuracy, 2 * SCENES) for name in ("tabletop", "tabletop_robot")}
    return [ComparedRun(name, 3e-4, seed, rollouts, answers, {}, 0.1, [0.1], name) for seed in range(seeds)]


def _stand(*rivals: list[ComparedRun], ours: list[ComparedRun]) -> dict[str, Standing]:
    groups = {group[0].protection: group for group in (ours, *rivals)}
    return standings("aegis", groups, [number // 2 for number in range(2 * SCENES)], "tabletop")


def test_differences_are_ours_less_the_others():
    (found,) = _stand(_runs("lora", 0.7, 0.95), ours=_runs("aegis", 0.8, 0.9)).values()
    assert found.success.value == pytest.approx(0.1) and found.answers.value == pytest.approx(-0.05)
    assert found.success.ci[0] > 0.05 and found.answers.ci[1] < -0.02
    assert found.outright == 0 and found.within < 0.01 and not found.no_worse() and not found.alike()


def test_who_is_better_in_both_surely_is():
    (found,) = _stand(_runs("none", 0.7, 0.8), ours=_runs("aegis", 0.8, 0.95)).values()
    assert found.outright == found.within == 1 and found.no_worse() and not found.alike()


def test_the_same_outcomes_are_alike():
    (found,) = _stand(_runs("lora", 0.8, 0.9), ours=_runs("aegis", 0.8, 0.9)).values()
    assert found.outright == found.within == 1 and found.alike()


def test_a_little_less_is_within_the_margins():
    (found,) = _stand(_runs("lora", 0.81, 0.905), ours=_runs("aegis", 0.8, 0.9)).values()
    assert found.outright < 0.05 < 0.95 < found.within


def test_more_rivals_widen_every_interval():
    ours, lora = _runs("aegis", 0.8, 0.9), _runs("lora", 0.7, 0.9)
    more = [replace(run, protection=name, folder=name) for name in ("ewc", "maps", "replay") for run in lora]
    others = [[run for run in more if run.protection == name] for name in ("ewc", "maps", "replay")]
    alone, among = _stand(lora, ours=ours)["lora"], _stand(lora, *others, ours=ours)["lora"]
    assert among.success.ci[0] < alone.success.ci[0] and among.success.value == alone.success.value


def test_a_protection_that_is_the_same_training_is_no_rival():
    ours = _runs("aegis", 0.8, 0.9)
    twin = [replace(run, protection="subspace") for run in ours]
    assert _stand(twin, ours=ours) == {}


def test_both_skills_are_drawn_with_the_same_seeds():
    """One seed is better in both and one worse in both: how likely both hold is not the product of the two."""
    good, bad = _runs("aegis", 0.9, 0.95, 1)[0], _runs("aegis", 0.5, 0.5, 1)[0]
    ours = [replace(good, seed=0), replace(bad, seed=1)]
    rival = _runs("lora", 0.7, 0.725, 2)
    found = _stand(rival, ours=ours)["lora"]
    assert 0.3 < found.outright < 0.5, "drawn apart it would be a quarter"


@pytest.mark.parametrize(
    ("success", "answers", "no_worse", "alike"),
    [
        ((-0.04, 0.04), (-0.01, 0.01), True, True),
        ((-0.04, 0.2), (-0.01, 0.01), True, False),
        ((-0.06, 0.04), (-0.01, 0.01), False, False),
        ((-0.04, 0.04), (-0.03, 0.01), False, False),
    ],
)
def test_margins(success, answers, no_worse: bool, alike: bool):
    each = Standing(
        *(Estimate(float(np.mean(ci)), ci) for ci in (success, answers)), within=1.0, outright=1.0
    )
    assert (each.no_worse(), each.alike()) == (no_worse, alike)
