"""Estimates as a reader sees them, with their intervals: rates in percent, changes in points, other numbers."""

from aegis_eval.statistics.resampling import Estimate


def rate(estimate: Estimate, digits: int = 1) -> str:
    """Percent with its interval: `84.0 [80.1, 87.2]`."""
    low, high = estimate.ci
    return f"{100 * estimate.value:.{digits}f} [{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def change(estimate: Estimate) -> str:
    """Points, signed, with their interval: `−2.1 [−4.0, +0.1]`."""
    low, high = estimate.ci
    return f"{100 * estimate.value:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


def number(estimate: Estimate, digits: int = 3) -> str:
    """A value that is no share, with its interval: `0.412 [0.398, 0.431]`."""
    low, high = estimate.ci
    return f"{estimate.value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def p_value(value: float) -> str:
    """To three places."""
    return f"{value:.3f}" if value >= 0.001 else "<0.001"
