"""`aegis-compare`: task success and VQA retention of the same checkpoints, across protections and seeds.

Every protection is trained on the same demonstrations through `lerobot-train`, rolled out on the same initial states
through `lerobot-eval`, and asked the same questions. The runs are independent jobs: stopped at any moment, the same
command goes on where their files say; `--launcher=ray` spreads them over machines.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_policy.support import cli


@dataclass
class CompareConfig:
    """Flags of `aegis-compare`.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again, and protections, seeds and learning rates
            may be added.
        protections: names in `aegis_eval.experiments.variants.VARIANTS`, with commas; `none` always runs.
        trials: instead of `protections` and `lr_grid`, a JSON file of what is tried for each of them on validation
            data: name -> list of `{"variant": ..., "lr": ...}`, by default the name itself and `lr_backbone`. Each is
            reported as the trial with the best sum of success and retention.
        seeds: trainings of each.
        quick: a few steps of everything, to see that it works; the numbers mean nothing. Flags that differ from their
            defaults stay.
        task: tabletop task, or several with commas.
        dataset: a recording of `aegis-record` to train on; by default one is made.
        episodes: demonstrations to record.
        steps: training steps.
        batch_size: samples a step.
        lr: learning rate of the action expert.
        lr_backbone: learning rate of the backbone, the same for all.
        lr_grid: learning rates of the backbone from which each protection gets its own as well, chosen on validation
            data: the one with the best sum of success and retention; none by default.
        flow_samples: see `AegisConfig`.
        vlm: the pretrained VLM.
        anchor_vqa: what shows it what it must not forget; the embedded VLM brings its anchor (see `aegis-ablate`).
        start: `pretrained_model` folder of a policy of this VLM, trained under `stop_gradient`, that every training
            begins from; by default each begins with a new expert.
        cameras: which of the tabletop's cameras the policy sees, with commas; by default all.
        policy: further flags of every training, without the leading `--policy.`.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        eval_episodes: rollouts of each task, split and run.
        validation_episodes: rollouts of each task to choose a learning rate by.
        samples: questions of each benchmark.
        texts: files without pictures that `aegis-vqa --benchmark=text:FILE` takes, which every backbone is asked, or
            reads, too.
        pairs: scenes of each task in which the instruction is swapped.
        act_scenes: scenes of each kind of question that `aegis-act` has the arm answer, where it has learned to `reach`
            and sees the front camera (0: none).
        alphas: after training, each run's language weights are led back to the pretrained ones by each of these, as
            `aegis-merge` does, rolled out and asked again: a curve from answers to success.
        curve_seeds: of how many seeds that is done, and likewise for the earlier checkpoints of each training.
        jobs: runs at once, on this machine.
        launcher: `local`, or `ray` for the machines of a Ray cluster that share this folder.
        cpus: cores that each run asks of Ray, and its threads.
        gpus: GPUs that each run asks of Ray.
        dry_run: print the plan and how long it may take, and run nothing.
    """

    output_dir: Path = Path("outputs/compare")
    protections: str = "none,freeze,stop_gradient,lora,replay,gaussian,aegis"
    trials: Path | None = None
    seeds: int = 3
    quick: bool = False
    task: str = "reach"
    dataset: Path | None = None
    episodes: int = 1000
    steps: int = 1500
    batch_size: int = 16
    lr: float = 2e-3
    lr_backbone: float = 3e-4
    lr_grid: list[float] = field(default_factory=list)
    flow_samples: int = 2
    vlm: str = "embedded"
    anchor_vqa: str = "tabletop"
    start: Path | None = None
    cameras: str | None = None
    policy: list[str] = field(default_factory=list)
    device: str | None = None
    eval_episodes: int = 100
    validation_episodes: int = 50
    samples: int = 1000
    texts: list[str] = field(default_factory=list)
    pairs: int = 50
    act_scenes: int = 25
    alphas: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    curve_seeds: int = 0
    jobs: int = 1
    launcher: str = "local"
    cpus: int = 1
    gpus: float = 0
    dry_run: bool = False


def main() -> None:
    """Entry point of `aegis-compare`."""
    cli.run(CompareConfig, _work)


def _work(config: CompareConfig) -> None:
    from aegis_eval.commands.work.compare import compare

    compare(config)


if __name__ == "__main__":
    main()
