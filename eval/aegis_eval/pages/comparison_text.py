"""What the page of a comparison and its Markdown say alike: what was compared, what is known, the table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from aegis_eval.results.baselines import ABOUT, UNKNOWN
from aegis_eval.results.compared import ALL, Compared
from aegis_eval.results.comparison import OURS, SCENES, BaselineResult, Comparison, ProtectionResult
from aegis_eval.results.standing import ANSWERS_MARGIN, SUCCESS_MARGIN
from aegis_eval.results.verdicts import headline, verdicts
from aegis_eval.statistics.intervals import wilson_interval
from aegis_eval.statistics.resampling import Estimate
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import change, number, rate

_HEADER = (
    "protection",
    "backbone lr",
    "success, test %",
    "against none",
    "answers %",
    "against pretrained",
    "success, unseen %",
    "against none",
    "robot frames: answers %",
    "drift %",
    "went to the named object %",
)
_ACTED = "went to what its VLM knows %"
_TITLES = {
    "common": "All at the same learning rate of the backbone:",
    "tuned": "Each as it was best on validation data:",
}


@dataclass(frozen=True)
class Summary:
    """What is known of protections at some learning rates.

    Attributes:
        won: which of those that keep their answers succeeds most often.
        known: what can and what cannot be said of ours, a sentence each; empty where ours was not compared.
        standings: how ours stands to each of the others; None where it was not compared.
        table: what was measured, a row a protection, and below them one an arm that ignores its instruction.
    """

    won: str
    known: list[str]
    standings: Table | None
    table: Table

    @classmethod
    def of(cls, comparison: Comparison) -> Self:
        """Say what a comparison lets one say."""
        first = next(iter(comparison.protections.values()))
        acted = first.acted
        header = [*_HEADER, *([_ACTED] if acted else [])]
        header += [f"{name}: retained %" for name in first.text_retained]
        header += [f"{name}: KL" for name in first.text_kl]
        return cls(
            won=headline(comparison, benchmark=SCENES),
            known=verdicts(comparison, ours=OURS, benchmark=SCENES) if OURS in comparison.protections else [],
            standings=_standings(comparison) if comparison.standings else None,
            table=Table(
                header,
                [
                    *([name, *_cells(row)] for name, row in comparison.protections.items()),
                    *(
                        [name, *_baseline_cells(row, acted[ALL].ignoring.get(name) if acted else None)]
                        for name, row in comparison.baselines.items()
                    ),
                ],
            ),
        )


STANDINGS = (
    f"`{OURS}` against each of the others: differences in points, with intervals that in each skill hold for all of "
    "them together (Bonferroni), and how likely it is at least as good in both skills when seeds, scenes and questions "
    f"are drawn anew. Up to {100 * SUCCESS_MARGIN:g} points of success and {100 * ANSWERS_MARGIN:g} of answers are "
    "margins, which count as no difference."
)


def _standings(comparison: Comparison) -> Table:
    rows = []
    for name, each in comparison.standings.items():
        surely = "alike" if each.alike() else "no worse" if each.no_worse() else "not known"
        rows.append(
            [
                name,
                change(each.success),
                change(each.answers),
                f"{100 * each.outright:.0f}",
                f"{100 * each.within:.0f}",
                surely,
            ]
        )
    header = ["against", "success, test", "answers", "at least as good in both %", "but for the margins %"]
    return Table([*header, "surely, but for the margins"], rows)


def what_was_compared(compared: Compared) -> str:
    """One paragraph on protections, data and measurements."""
    config = compared.config
    by_folder: dict[str, list[str]] = {}
    for run in compared.runs:
        by_folder.setdefault(run.folder, []).append(run.protection)
    same = dict.fromkeys(" and ".join(shared) for shared in by_folder.values() if len(shared) > 1)
    quick = (
        "A quick run, to see that everything works: its numbers mean nothing. " if config.get("quick") else ""
    )
    seen = f", seen by {config['cameras']} alone" if config.get("cameras") else ""
    begun = (
        ", beginning from a policy that had learned it behind a frozen backbone"
        if config.get("start")
        else ""
    )
    return (
        f"{quick}{len(compared.protections)} protections of the same vision-language model, {config['seeds']} seeds "
        f"each, trained for {config['steps']} steps on the same demonstrations of {config['task']}{seen}{begun}. "
        f"Each run met the same {config['eval_episodes']} initial states a task and split (unseen instructs pairs of "
        f"colour and shape that no demonstration does) and the same {config['samples']} questions of each kind."
        + "".join(
            f" {names} are the same training, for vision tower and projector do not learn." for names in same
        )
        + (f" {ABOUT}" if compared.baselines else f" {UNKNOWN}: aegis-baseline says it.")
    )


def markdown(compared: Compared, summaries: Mapping[str, Summary]) -> str:
    """All of it as Markdown; `summaries` are at the `common` learning rate, `tuned`, or both."""
    parts = [what_was_compared(compared)]
    for name, summary in summaries.items():
        listed = "\n".join(f"- {sentence}" for sentence in summary.known)
        parts += [_TITLES[name], f"**{summary.won}**", *filter(None, [listed]), summary.table.markdown()]
        if summary.standings is not None:
            parts += [STANDINGS, summary.standings.markdown()]
    return "\n\n".join(parts) + "\n"


def _cells(row: ProtectionResult) -> list[str]:
    def success(split: str) -> list[str]:
        against = "" if row.against_none is None else change(row.against_none[split][ALL])
        return [rate(row.success[split][ALL]), against]

    scenes, frames = row.answers["tabletop"][ALL], row.answers["tabletop_robot"][ALL]
    followed = sum(counts["followed"] for counts in row.swaps.values())
    rollouts = 2 * sum(counts["pairs"] for counts in row.swaps.values())
    listened = Estimate(followed / rollouts, wilson_interval(followed, rollouts))
    return [
        f"{row.lr:g}",
        *success("test"),
        rate(scenes.accuracy),
        change(scenes.change),
        *success("unseen"),
        rate(frames.accuracy),
        rate(row.drift),
        f"{rate(listened, 0)} of {rollouts}",
        *([f"{rate(row.acted[ALL].acted)}, says {rate(row.acted[ALL].answered)}"] if row.acted else []),
        *map(rate, row.text_retained.values()),
        *(number(each, 4) for each in row.text_kl.values()),
    ]


def _baseline_cells(row: BaselineResult, acted: float | None) -> list[str]:
    cells = dict.fromkeys(_HEADER[1:], "")  # the two columns "against none" are one, and empty
    cells |= {f"success, {split} %": rate(by_task[ALL]) for split, by_task in row.success.items()}
    cells[_HEADER[-1]] = f"{rate(row.named, 0)} of {row.rollouts}"
    return [*(cells[title] for title in _HEADER[1:]), *([f"{100 * acted:.1f}"] if acted is not None else [])]
