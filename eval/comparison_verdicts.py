"""What a comparison lets one say, in sentences: which protection to take, and what is not known."""

from aegis_eval.comparison import ALL, REFERENCE, Comparison, ProtectionResult
from aegis_eval.resampling import Estimate

_WITHIN = 0.02
"""How much accuracy may be lost for answers to count as kept."""


def headline(comparison: Comparison, *, benchmark: str) -> str:
    """What won: of the protections that surely keep their answers, those whose success is not told apart from the best.

    Args:
        comparison: of two protections or more.
        benchmark: whose questions count.
    """
    rows = comparison.protections
    keep = [name for name, row in rows.items() if _keeps(row, benchmark) == "keeps"]
    if not keep:
        return (
            f"No protection surely keeps its answers within {100 * _WITHIN:g} points of the pretrained model."
        )
    best = max(keep, key=lambda name: rows[name].success["test"][ALL].value)
    rate = rows[best].success["test"][ALL]
    apart = {name: rows[best].against_others[name].ci[0] > 0 for name in keep if name != best}
    sentence = (
        f"Of the {len(keep)} protections that surely keep their answers within {100 * _WITHIN:g} points, `{best}` "
        f"succeeds most often: on {_percent(rate)} of test scenes."
        if len(keep) > 1
        else f"Only `{best}` surely keeps its answers within {100 * _WITHIN:g} points; it succeeds on {_percent(rate)} "
        "of test scenes."
    )
    if alike := [name for name, surely in apart.items() if not surely]:
        sentence += f" {_names(alike)} cannot be told apart from it."
    if worse := [name for name, surely in apart.items() if surely]:
        sentence += f" {_names(worse)} succeed{'s' if len(worse) == 1 else ''} less often."
    return sentence


def verdicts(comparison: Comparison, *, ours: str, benchmark: str) -> list[str]:
    """What can and what cannot be said of `ours`.

    Args:
        comparison: with `ours`, `none` and, to say whether the task needs a backbone that learns, `freeze`.
        ours: the protection to judge.
        benchmark: whose questions count.
    """
    rows = comparison.protections
    none, row = rows[REFERENCE], rows[ours]
    sentences = []
    if "freeze" in rows:
        gap = _negated(_against(rows["freeze"], "test"))
        helps = _more(gap, "helps", "hinders")
        sentences.append(
            f"A backbone that learns {helps} on test scenes: `none` against `freeze` {_points(gap)}."
        )
    lost = none.answers[benchmark][ALL].change
    gains = _more(lost, "gains", "loses")
    sentences.append(f"Without protection the backbone {gains} answers: {_points(lost)}.")
    for split in row.success:
        change = _against(row, split)
        sentences.append(
            f"On {split} scenes `{ours}` {_more(change, 'succeeds more often', 'succeeds less often')} than `none`: "
            f"{_points(change)}."
        )
    kept = row.answers[benchmark][ALL].change
    sentences.append(
        f"`{ours}` {_keeps(row, benchmark)} its answers within {100 * _WITHIN:g} points of the pretrained model: "
        f"{_points(kept)}."
    )
    return sentences


def _keeps(row: ProtectionResult, benchmark: str) -> str:
    low, high = row.answers[benchmark][ALL].change.ci
    if low >= -_WITHIN:
        return "keeps"
    return "does not keep" if high < -_WITHIN else "is not surely known to keep"


def _against(row: ProtectionResult, split: str) -> Estimate:
    assert row.against_none is not None
    return row.against_none[split][ALL]


def _negated(change: Estimate) -> Estimate:
    return Estimate(-change.value, (-change.ci[1], -change.ci[0]))


def _more(change: Estimate, more: str, less: str) -> str:
    if change.ci[0] > 0:
        return more
    return less if change.ci[1] < 0 else f"neither surely {more} nor {less}"


def _points(change: Estimate) -> str:
    low, high = change.ci
    return f"{100 * change.value:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]".replace("-", "−")


def _percent(rate: Estimate) -> str:
    low, high = rate.ci
    return f"{100 * rate.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def _names(names: list[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(quoted[:-1]), quoted[-1]]))
