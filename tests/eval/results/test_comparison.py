"""The statistics of a comparison: paired over initial states and questions, and honest about what they cannot tell."""

from dataclasses import replace

import numpy as np
import pytest

from aegis_eval.results.compared import ALL, ComparedRun, Questions
from aegis_eval.results.comparison import Comparison
from aegis_eval.results.verdicts import headline, verdicts
from aegis_eval.statistics.resampling import Resampling, change_estimate, estimate
from aegis_policy.support.errors import AegisError

EPISODES, SCENES = 100, 300
TYPES = ("shape", "count")


def bit_string(rng: np.random.Generator, rate: float, count: int) -> str:
    return "".join(str(int(bit)) for bit in rng.random(count) < rate)


def make_runs(name: str, success: float, accuracy: float, seeds: int = 3) -> list[ComparedRun]:
    runs = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, len(name), ord(name[0])])
        rollouts = {
            split: {task: bit_string(rng, success, EPISODES) for task in ("reach", "pick")}
            for split in ("test", "unseen")
        }
        answers = {name: bit_string(rng, accuracy, 2 * SCENES) for name in ("tabletop", "tabletop_robot")}
        swaps = {"reach": {"pairs": 10, "followed": 15, "changed": 7}}
        runs.append(
            ComparedRun(name, 3e-4, seed, rollouts, answers, swaps, 0.1 * (seed + 1), [0.1, 0.2], name)
        )
    return runs


@pytest.fixture(scope="module")
def questions() -> dict[str, Questions]:
    asked = Questions(
        types=[TYPES[index % 2] for index in range(2 * SCENES)],
        scenes=[index // 2 for index in range(2 * SCENES)],
        pretrained="1" * (2 * SCENES),
    )
    return {"tabletop": asked, "tabletop_robot": asked}


def test_estimates_are_the_plain_means(questions):
    runs = make_runs("none", 0.8, 0.7)
    row = Comparison.of(runs, questions).protections["none"]
    everything = "".join(run.outcomes("test", ALL) for run in runs)
    assert len(runs[0].outcomes("test", ALL)) == 2 * EPISODES
    assert row.success["test"][ALL].value == pytest.approx(everything.count("1") / len(everything))
    picked = "".join(run.rollouts["unseen"]["pick"] for run in runs)
    assert row.success["unseen"]["pick"].value == pytest.approx(picked.count("1") / len(picked))
    shapes = "".join(run.answers["tabletop"][::2] for run in runs)
    of = row.answers["tabletop"]["shape"]
    assert of.n == SCENES and of.pretrained == 1
    assert of.accuracy.value == pytest.approx(shapes.count("1") / len(shapes))
    assert of.change.value == pytest.approx(of.accuracy.value - 1)
    assert row.retained["tabletop"].value == pytest.approx(row.answers["tabletop"][ALL].accuracy.value)
    assert row.drift.value == pytest.approx(0.2) and row.against_none is None
    assert row.swaps == {"reach": {"pairs": 30, "followed": 45, "changed": 21}}


def test_acting_is_counted_over_kinds_and_seeds_beside_arms_that_ignore_the_question(questions):
    def asked(acted: str) -> dict[str, object]:
        return {"acted": acted, "answered": "1" * len(acted), "ignoring": {"any object": len(acted) / 100}}

    found = [
        {"size": asked("1100"), "count": asked("10" * 8)},
        {"size": asked("0000"), "count": asked("00" * 8)},
    ]
    runs = [
        replace(run, acted=acted) for run, acted in zip(make_runs("none", 0.5, 0.9, 2), found, strict=True)
    ]
    rows = Comparison.of(runs, questions).protections["none"].acted
    assert {kind: row.acted.value for kind, row in rows.items()} == {"size": 0.25, "count": 0.25, ALL: 0.25}
    assert rows["count"].acted.ci[0] < 0.25 < rows["count"].acted.ci[1]
    assert rows[ALL].answered.value == 1 and rows[ALL].answered.ci[0] < 1
    assert rows[ALL].ignoring == {"any object": pytest.approx((4 * 0.04 + 16 * 0.16) / 20)}
    older = [replace(run, protection="aegis", acted={}) for run in runs]
    both = Comparison.of([*runs, *older], questions).protections
    assert both["none"].acted and both["aegis"].acted == {}


def test_the_same_outcomes_differ_by_nothing_whatever_the_seeds_vary(questions):
    none = make_runs("none", 0.5, 0.9)
    twin = [replace(run, protection="aegis") for run in none]
    row = Comparison.of([*none, *twin], questions).protections["aegis"]
    assert row.against_none is not None
    change = row.against_none["test"][ALL]
    assert change.value == 0 and -0.02 < change.ci[0] < 0 < change.ci[1] < 0.02, "pairing leaves no noise"
    assert row.success["test"][ALL].ci[1] - row.success["test"][ALL].ci[0] > 0.03


def test_nothing_seen_in_a_few_scenes_is_not_nothing(questions):
    few = {name: replace(asked, scenes=[0, 1] * SCENES) for name, asked in questions.items()}
    runs = make_runs("none", 1.0, 1.0)
    row = Comparison.of(runs, few).protections["none"]
    of = row.answers["tabletop"][ALL]
    assert of.accuracy.ci[0] < 0.4 and of.change.ci == pytest.approx((-0.84, 0.84), abs=0.01)
    assert 0.9 < row.success["test"]["reach"].ci[0] < 1.0


@pytest.mark.parametrize("seeds_that_lose", [1, 3])
def test_losing_a_few_answers_is_no_more_certain_than_losing_none(seeds_that_lose: int) -> None:
    scenes = np.repeat(np.arange(200), 5)
    drawn = Resampling(3, groups_N=scenes.tolist())
    lows = []
    for lost in range(10):
        changes_KN = np.zeros((3, 1000))
        changes_KN[:seeds_that_lose, 5 * 7 * np.arange(lost)] = -1
        change = change_estimate(drawn.means(changes_KN), changes_KN, scenes.tolist())
        assert change.ci[0] < change.value <= change.ci[1] and change.value == pytest.approx(
            changes_KN.mean()
        )
        lows.append(change.ci[0])
    assert max(lows) < lows[0] + 0.006, "nothing lost is the best there can be, but for half a point"


def test_where_much_changed_the_bounds_are_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    changes_KN = rng.choice([-1.0, 0.0, 1.0], size=(3, 400), p=[0.25, 0.6, 0.15])
    draws = Resampling(3, count=400).means(changes_KN)
    plain, wider = estimate(draws), change_estimate(draws, changes_KN)
    assert wider == plain


def test_differences_to_several_others_are_less_sure_than_to_one(questions):
    runs = [*make_runs("none", 0.6, 0.9), *make_runs("lora", 0.7, 0.9)]
    more = [*runs, *make_runs("aegis", 0.5, 0.9), *make_runs("ewc", 0.5, 0.9)]
    one, several = (
        Comparison.of(each, questions).protections["lora"].against_others for each in (runs, more)
    )
    assert list(several) == ["none", "aegis", "ewc"] and one["none"].value == several["none"].value > 0
    assert np.ptp(several["none"].ci) > 1.1 * np.ptp(one["none"].ci)


def test_seeds_that_differ_widen_the_interval(questions):
    alike = make_runs("none", 0.5, 0.9)
    outcomes = {split: dict.fromkeys(("reach", "pick"), "1" * EPISODES) for split in ("test", "unseen")}
    apart = [alike[0], alike[1], replace(alike[2], rollouts=outcomes)]

    def width(runs):
        return np.ptp(Comparison.of(runs, questions).protections["none"].success["test"][ALL].ci)

    assert width(apart) > 2 * width(alike)


def test_verdicts_say_what_is_known_and_what_is_not(questions):
    runs = [
        *make_runs("none", 0.9, 0.7),
        *make_runs("freeze", 0.4, 1.0),
        *make_runs("aegis", 0.9, 0.995),
    ]
    helps, forgets, test, unseen, kept = verdicts(
        Comparison.of(runs, questions), ours="aegis", benchmark="tabletop"
    )
    assert helps.startswith("A backbone that learns helps on test scenes: `none` against `freeze` +")
    assert forgets.startswith("Without protection the backbone loses answers: −")
    for sentence in (test, unseen):
        assert "cannot be told apart from `none` in success" in sentence
    assert kept.startswith("`aegis` keeps its answers within 2 points")


@pytest.mark.parametrize(
    ("accuracy", "verdict"), [(0.98, "is not surely known to keep"), (0.9, "does not keep")]
)
def test_retention_is_claimed_only_where_the_interval_says_so(questions, accuracy, verdict):
    runs = [*make_runs("none", 0.9, 0.7), *make_runs("aegis", 0.9, accuracy)]
    *_, kept = verdicts(Comparison.of(runs, questions), ours="aegis", benchmark="tabletop")
    assert kept.startswith(f"`aegis` {verdict}")


def test_answers_of_activations_that_did_not_move_are_known_to_be_kept(questions):
    runs = [*make_runs("none", 0.9, 0.7), *make_runs("freeze", 0.9, 1.0)]
    frozen = [replace(run, drift=0.0) if run.protection == "freeze" else run for run in runs]
    for group, low in ((runs, -0.02), (frozen, 0.0)):
        change = Comparison.of(group, questions).protections["freeze"].answers["tabletop"]["shape"].change
        assert change.value == 0 and low <= change.ci[0] <= low / 4
    moved = [replace(run, drift=0.0) for run in runs]
    assert Comparison.of(moved, questions).protections["none"].answers["tabletop"][ALL].change.ci[0] < -0.2


def test_the_headline_names_the_best_that_keeps_its_answers_and_who_is_not_told_apart(questions):
    runs = [
        *make_runs("none", 0.9, 0.7),
        *make_runs("freeze", 0.3, 1.0),
        *make_runs("lora", 0.8, 0.999),
        *make_runs("aegis", 0.81, 0.999),
    ]
    said = headline(Comparison.of(runs, questions), benchmark="tabletop")
    assert said.startswith(
        "Of the 3 protections that surely keep their answers about scenes within 2 points, `"
    )
    assert "`freeze` succeeds less often." in said and "cannot be told apart from it" in said
    assert "none" not in said, "it forgets"
    twins = [replace(run, protection="stop_gradient") for run in runs if run.protection == "freeze"]
    assert headline(Comparison.of([*runs, *twins], questions), benchmark="tabletop") == said, "counted once"
    for runs, wanted in (
        ([*make_runs("none", 0.9, 0.7), *make_runs("aegis", 0.5, 1.0)], "Only `aegis` surely keeps"),
        (make_runs("none", 0.9, 0.7), "No protection surely keeps the pretrained"),
    ):
        assert headline(Comparison.of(runs, questions), benchmark="tabletop").startswith(wanted)


def test_seeds_that_some_protection_lacks_are_refused(questions):
    with pytest.raises(AegisError, match="needs the same seeds"):
        Comparison.of([*make_runs("none", 0.5, 0.5), *make_runs("aegis", 0.5, 0.5, seeds=2)], questions)
    with pytest.raises(AegisError, match="none among them"):
        Comparison.of(make_runs("aegis", 0.5, 0.5), questions)
