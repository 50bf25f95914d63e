"""`aegis-demo`: from nothing to one page, through the commands a user would type.

Demonstrations of a task are recorded, the base policy that comes with the package is fine-tuned to it (by default to
one that it never did) twice, unprotected and under AEGIS, both are rolled out and questioned, and the report written.
Every stage leaves its result under `--output_dir`; a demo that was interrupted continues with the first stage that did
not finish.
"""

from dataclasses import dataclass
from pathlib import Path

from aegis_policy.support import cli


@dataclass
class DemoConfig:
    """Flags of `aegis-demo`.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again.
        quick: a few steps of everything, to see that it works; the numbers mean nothing. Flags that differ from their
            defaults stay.
        task: tabletop task, or several with commas.
        episodes: demonstrations to record.
        steps: training steps of each policy.
        batch_size: samples a step.
        lr_backbone: learning rate of the backbone, high enough that an unprotected one visibly forgets; the expert's
            comes with the base policy.
        eval_episodes: rollouts of each policy.
        samples: questions asked of each backbone.
        seed: of everything.
    """

    output_dir: Path = Path("outputs/demo")
    quick: bool = False
    task: str = "bowl"
    episodes: int = 100
    steps: int = 400
    batch_size: int = 16
    lr_backbone: float = 5e-4
    eval_episodes: int = 20
    samples: int = 400
    seed: int = 0


def main() -> None:
    """Entry point of `aegis-demo`."""
    cli.run(DemoConfig, _work)


def _work(config: DemoConfig) -> None:
    from aegis_eval.commands.work.demo import demo

    demo(config)


if __name__ == "__main__":
    main()
