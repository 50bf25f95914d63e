"""What a comparison lets one say, in sentences: which protection to take, and what is not known."""

from aegis_eval.results.compared import ALL
from aegis_eval.results.comparison import REFERENCE, Comparison, ProtectionResult
from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.text import change, rate

_WITHIN = 0.02
"""How much accuracy may be lost for answers to count as kept."""
_WITHIN_POINTS = f"{100 * _WITHIN:g}"


def headline(comparison: Comparison, *, benchmark: str) -> str:
    """Sentence on what won: of the protections that surely keep their answers, those not told apart from the best.

    Differences are corrected for the number of pairs of trainings, since any of them may turn out the best. Protections
    that are the same training count once.

    Args:
        comparison: of two protections or more.
        benchmark: whose questions count.
    """
    rows = comparison.protections
    keep = _that_keep(comparison, benchmark)
    if not keep:
        return f"No protection surely keeps the pretrained model's answers about scenes within {_WITHIN_POINTS} points."
    best = max(keep, key=lambda name: rows[name].success["test"][ALL].value)
    within = f"answers about scenes within {_WITHIN_POINTS} points"
    succeeds = f"on {rate(rows[best].success['test'][ALL], 0)} % of test scenes"
    if len(keep) == 1:
        return f"Only `{best}` surely keeps its {within}; it succeeds {succeeds}."
    ahead = {name: rows[best].against_others[name].ci[0] > 0 for name in keep if name != best}
    alike = [f"`{name}`" for name, surely in ahead.items() if not surely]
    worse = [f"`{name}`" for name, surely in ahead.items() if surely]
    sentences = [
        f"Of the {len(keep)} protections that surely keep their {within}, `{best}` succeeds most often: {succeeds}."
    ]
    if alike:
        sentences.append(f"{_names(alike)} cannot be told apart from it.")
    if worse:
        sentences.append(f"{_names(worse)} succeed{'s' if len(worse) == 1 else ''} less often.")
    return " ".join(sentences)


def _that_keep(comparison: Comparison, benchmark: str) -> list[str]:
    """Names of the protections that surely keep their answers, the first of those that are the same training."""
    keep: list[str] = []
    for name, row in comparison.protections.items():
        same = [each for each in keep if each not in row.against_others]
        if _surely_keeps(row, benchmark) and not same:
            keep.append(name)
    return keep


def verdicts(comparison: Comparison, *, ours: str, benchmark: str) -> list[str]:
    """Sentences on what can and what cannot be said of `ours`.

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
        over = _against(row, split)
        sentences.append(f"On {split} scenes `{ours}` {_than(over, '`none`')}: {_points(over)}.")
    for name in comparison.baselines:
        found = [
            f"on {split} scenes `{ours}` {_than(by_name[name], 'it')} ({_points(by_name[name])})"
            for split, by_name in row.against_baselines.items()
        ]
        sentences.append(f"`{name}` ignores its instruction: {', '.join(found)}.")
    kept = row.answers[benchmark][ALL].change
    sentences.append(
        f"`{ours}` {_verb(row, benchmark)} its answers within {_WITHIN_POINTS} points of the pretrained model: "
        f"{_points(kept)}."
    )
    return sentences


def _surely_keeps(row: ProtectionResult, benchmark: str) -> bool:
    return row.answers[benchmark][ALL].change.ci[0] >= -_WITHIN


def _verb(row: ProtectionResult, benchmark: str) -> str:
    """Whether it keeps its answers, as a verb."""
    if _surely_keeps(row, benchmark):
        return "keeps"
    high = row.answers[benchmark][ALL].change.ci[1]
    return "does not keep" if high < -_WITHIN else "is not surely known to keep"


def _against(row: ProtectionResult, split: str) -> Estimate:
    assert row.against_none is not None
    return row.against_none[split][ALL]


def _negated(difference: Estimate) -> Estimate:
    low, high = difference.ci
    return Estimate(-difference.value, (-high, -low))


def _more(difference: Estimate, more: str, less: str) -> str:
    if difference.ci[0] > 0:
        return more
    return less if difference.ci[1] < 0 else f"neither surely {more} nor {less}"


def _than(difference: Estimate, other: str) -> str:
    low, high = difference.ci
    if low <= 0 <= high:
        return f"cannot be told apart from {other} in success"
    return f"succeeds {'more' if low > 0 else 'less'} often than {other}"


def _points(difference: Estimate) -> str:
    return f"{change(difference)} points"


def _names(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
