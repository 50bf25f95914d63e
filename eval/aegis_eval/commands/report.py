"""`aegis-report`: one self-contained HTML page about finished runs: both skills, with intervals, figures and videos.

Of a comparison (`aegis-compare`) it is the comparison's page, computed again from its raw JSON; of any other folder it
is one about the runs found in it.
"""

from dataclasses import dataclass
from pathlib import Path

from aegis_policy.support import cli


@dataclass
class ReportConfig:
    """Flags of `aegis-report`.

    Attributes:
        runs: the `--output_dir` of `aegis-compare` or its `comparison.json`, beside which result files of further runs
            may lie (`*-seed*.json`); else a folder with a folder for every run, in which the outputs of `lerobot-eval`,
            `aegis-vqa`, `aegis-swap` (`swap.json`) and `lerobot-train` (`metrics.jsonl`, `*.log`) are looked for, and
            beside them the output of `aegis-baseline` (`baseline.json`).
        output_dir: where the page goes, by default into `runs`.
        title: heading of the page, instead of its own.
    """

    runs: Path
    output_dir: Path | None = None
    title: str | None = None


def main() -> None:
    """Entry point of `aegis-report`."""
    cli.run(ReportConfig, _work)


def _work(config: ReportConfig) -> None:
    from aegis_eval.commands.work.report import report

    report(config)


if __name__ == "__main__":
    main()
