"""Estimates as a reader sees them."""

from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.text import change, number, p_value, rate


def test_rates_are_percent_and_changes_signed_points_with_a_minus_of_their_width() -> None:
    assert rate(Estimate(0.84, (0.801, 0.8724))) == "84.0 [80.1, 87.2]"
    assert rate(Estimate(0.84, (0.801, 0.8724)), 0) == "84 [80, 87]"
    assert change(Estimate(-0.021, (-0.04, 0.001))) == "−2.1 [−4.0, +0.1]"
    assert number(Estimate(0.4123, (-0.2, 1.0))) == "0.412 [-0.200, 1.000]"


def test_small_p_values_are_only_said_to_be_small() -> None:
    assert (p_value(0.001), p_value(0.00099), p_value(1.0)) == ("0.001", "<0.001", "1.000")
