import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from aegis_eval.statistics.intervals import (
    accuracy_interval,
    compare_paired,
    wilson_interval,
)


@given(st.integers(1, 400), st.data())
@settings(max_examples=60, deadline=None)
def test_wilson_interval_agrees_with_scipy(n, data):
    successes = data.draw(st.integers(0, n))
    reference = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-9)


def test_wilson_interval_of_nothing_says_nothing_and_nonsense_is_refused():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="5 successes of 3"):
        wilson_interval(5, 3)


def test_paired_comparison_counts_changes_and_brackets_the_difference():
    rng = np.random.default_rng(0)
    reference = rng.random(1000) < 0.8
    correct = reference & (rng.random(1000) < 0.9)
    result = compare_paired(correct, reference)
    assert result.difference == pytest.approx(correct.mean() - reference.mean())
    assert result.ci[0] < result.difference < result.ci[1] < 0
    assert result.gained == 0 and result.lost == int((reference & ~correct).sum())
    assert result.p_value < 1e-6
    spread = np.sqrt(np.var(correct.astype(float) - reference) / 1000)
    assert result.ci[1] - result.ci[0] == pytest.approx(2 * 1.96 * spread, rel=0.1)


@pytest.mark.parametrize(("gained", "lost"), [(2, 9), (0, 1), (5, 5), (40, 90), (700, 800)])
def test_mcnemar_p_is_the_exact_two_sided_binomial(gained, lost):
    correct = [True] * gained + [False] * lost + [True] * 20
    reference = [False] * gained + [True] * lost + [True] * 20
    expected = binomtest(gained, gained + lost).pvalue
    assert compare_paired(correct, reference).p_value == pytest.approx(expected, rel=1e-9)


def test_equal_models_do_not_differ():
    result = compare_paired([True, False, True], [True, False, True])
    assert (result.difference, result.ci, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_dependent_samples_widen_the_interval():
    rng = np.random.default_rng(1)
    per_image = np.repeat(rng.random(100) < 0.5, 6)
    none = np.zeros(600, dtype=bool)
    alone = compare_paired(per_image, none).ci
    grouped = compare_paired(per_image, none, groups=np.repeat(np.arange(100), 6).tolist()).ci
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_dependent_samples_do_not_pass_for_evidence():
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(60), 5).tolist()
    false_alarms = {"grouped": 0, "alone": 0}
    for _ in range(100):
        changes = np.repeat(rng.choice((-1, 0, 1), 60), 5)  # an image changes all its answers, for no reason
        ours, theirs = changes > 0, changes < 0
        false_alarms["grouped"] += compare_paired(ours, theirs, groups, resamples=10).p_value < 0.05
        false_alarms["alone"] += compare_paired(ours, theirs, resamples=10).p_value < 0.05
    assert false_alarms["grouped"] <= 12 < false_alarms["alone"]


def test_one_change_a_group_is_mcnemar():
    ours, theirs = [True] * 3 + [False] * 11, [False] * 3 + [True] * 9 + [False] * 2
    groups = list(range(14))
    assert compare_paired(ours, theirs, groups).p_value == compare_paired(ours, theirs).p_value


def test_accuracy_intervals_know_about_shared_images():
    correct = np.repeat(np.arange(100) % 2 == 0, 6)
    groups = np.repeat(np.arange(100), 6).tolist()
    assert accuracy_interval(correct) == wilson_interval(300, 600)
    assert accuracy_interval(correct[::6], groups[::6]) == wilson_interval(50, 100)
    assert accuracy_interval([True] * 600, groups) == wilson_interval(100, 100)
    assert accuracy_interval([False] * 600, groups) == wilson_interval(0, 100)
    low, high = accuracy_interval(correct, groups)
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.15)


def test_a_paired_comparison_needs_the_same_samples():
    with pytest.raises(ValueError, match="needs the same samples"):
        compare_paired([True], [True, False])
