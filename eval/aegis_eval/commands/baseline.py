"""`aegis-baseline`: what an arm reaches that ignores its instruction, in the scenes in which a policy is rolled out.

Where a policy does no better, its success does not say that it listens. Only the tabletop can be asked this way: its
scenes hold several objects of which one is named.
"""

from dataclasses import dataclass
from pathlib import Path

from aegis_policy.support import cli


@dataclass
class BaselineConfig:
    """Flags of `aegis-baseline`.

    Attributes:
        task: tabletop task, or several with commas, or all.
        split: of the tabletop: `train`, `test` or `unseen`.
        episodes: scenes of each task.
        seed: of the first scene, as `lerobot-eval` counts them.
        output: a JSON file, replaced once the new one is complete; `aegis-report` shows it beside the runs' folders.
    """

    task: str = "reach"
    split: str = "test"
    episodes: int = 100
    seed: int = 1000
    output: Path = Path("outputs/baseline.json")


def main() -> None:
    """Entry point of `aegis-baseline`."""
    cli.run(BaselineConfig, _work, file="output")


def _work(config: BaselineConfig) -> None:
    from aegis_eval.commands.work.baseline import baseline

    baseline(config)


if __name__ == "__main__":
    main()
