"""What a comparison's page and its Markdown have in common: what was compared, what is known, the table."""

from collections.abc import Mapping
from typing import Any

from aegis_eval.results.comparison import ALL, Comparison, ProtectionResult
from aegis_eval.results.verdicts import headline, verdicts
from aegis_eval.statistics.intervals import wilson_interval
from aegis_eval.statistics.tables import Table
from aegis_eval.statistics.text import change, rate

Json = Mapping[str, Any]
_OURS = "aegis"
_HEADER = [
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
]


def what(results: Json) -> str:
    """One paragraph on what was compared."""
    config = results["config"]
    names = list(results["protections"])
    by_folder: dict[str, list[str]] = {}
    for run in results["runs"]:
        by_folder.setdefault(run["folder"], []).append(run["protection"])
    seen = f", seen by {config['cameras']} alone" if config.get("cameras") else ""
    same = dict.fromkeys(" and ".join(shared) for shared in by_folder.values() if len(shared) > 1)
    quick = (
        "A quick run, to see that everything works: its numbers mean nothing. " if config.get("quick") else ""
    )
    return (
        f"{quick}{len(names)} protections of the same vision-language model, {config['seeds']} seeds each, trained for "
        f"{config['steps']} steps on the same demonstrations of {config['task']}{seen}. Each run met the same "
        f"{config['eval_episodes']} initial states a task and split (unseen instructs pairs of colour and shape that "
        f"no demonstration does) and the same {config['samples']} questions of each kind."
        + "".join(
            f" {names} are the same training, for vision tower and projector do not learn." for names in same
        )
    )


def sentences(comparison: Comparison) -> list[str]:
    """What won, then what is known of ours."""
    known = verdicts(comparison, ours=_OURS, benchmark="tabletop") if _OURS in comparison.protections else []
    return [headline(comparison, benchmark="tabletop"), *known]


def table(comparison: Comparison) -> Table:
    """What was measured, a row a protection."""
    return Table(_HEADER, [[name, *_cells(row)] for name, row in comparison.protections.items()])


def _cells(row: ProtectionResult) -> list[str]:
    def success(split: str) -> list[str]:
        against = "" if row.against_none is None else change(row.against_none[split][ALL])
        return [rate(row.success[split][ALL]), against]

    scenes, frames = row.answers["tabletop"][ALL], row.answers["tabletop_robot"][ALL]
    followed = sum(counts["followed"] for counts in row.swaps.values())
    rollouts = 2 * sum(counts["pairs"] for counts in row.swaps.values())
    low, high = wilson_interval(followed, rollouts)
    return [
        f"{row.lr:g}",
        *success("test"),
        rate(scenes.accuracy),
        change(scenes.change),
        *success("unseen"),
        rate(frames.accuracy),
        rate(row.drift),
        f"{100 * followed / rollouts:.0f} [{100 * low:.0f}, {100 * high:.0f}] of {rollouts}",
    ]


def markdown(results: Json, summaries: Mapping[str, Comparison]) -> str:
    """All of it as Markdown; `summaries` are at the `common` learning rate and, if there were several, `tuned`."""
    lines = [what(results), ""]
    titles = {"common": "All at the same learning rate of the backbone:", "tuned": "Each at its own:"}
    for name, comparison in summaries.items():
        first, *rest = sentences(comparison)
        lines += [titles[name], "", f"**{first}**", "", *(f"- {each}" for each in rest), ""]
        lines += [table(comparison).markdown(), ""]
    return "\n".join(lines)
