"""`aegis-ablate`: many short trainings that differ in one flag, and what each keeps and learns.

Every variant is trained on the same demonstrations with the same seeds through `lerobot-train`; its backbone is asked
the same questions (`aegis-vqa`) and its chunks are compared with the same held-out demonstrations
(`aegis-action-error`). Stopped, it goes on where it was when the same command is given again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_policy.support import cli


@dataclass
class AblateConfig:
    """Flags of `aegis-ablate`.

    Attributes:
        output_dir: everything goes there; a finished stage is not run again, and variants or seeds may be added.
        variants: names in `aegis_eval.experiments.variants.VARIANTS`; `none` and `stop_gradient`, which the
            others are measured between, always run.
        seeds: how many trainings of each variant.
        split: `val` to find a setting, `test` to report one: of the questions and of the held-out demonstrations.
        tasks: tabletop tasks, with commas.
        episodes: demonstrations to train on.
        data_seed: seed of their scenes; another than that of `start`'s, and they are new to it.
        scatter: share of them that begin anywhere (see `aegis-record`).
        held_out: demonstrations to measure the action error on.
        steps: training steps.
        batch_size: samples a step.
        lr: learning rate of the action expert.
        lr_backbone: learning rate of the backbone.
        flow_samples: see `AegisConfig`.
        probe_freq: ask the backbone VQA questions every so many training steps (0: never), for retention over steps.
        cameras: which of the dataset's cameras the policy sees, with commas. The wrist's alone shows scenes as no
            question ever did, so that much is to be learned in the backbone.
        policy: further flags of every training, without the leading `--policy.`, e.g. `[chunk_size=8]`; none that one
            of the protections refuses.
        vlm: the pretrained VLM.
        start: `pretrained_model` folder of a policy of this VLM, trained under `stop_gradient`, that every training
            begins from: with an expert that knows the task, the backbone's part is seen. By default each begins with a
            new expert.
        anchor_vqa: what shows it what it must not forget (`aegis-anchor --vqa`), as `tabletop+text:FILE.txt`; the
            embedded VLM brings its anchor, but for the variants that need another.
        samples: questions asked of each trained backbone.
        benchmarks: further benchmarks of the tabletop (`tabletop_composed`, `tabletop_robot`), of which each trained
            backbone is asked as many; they may be added to what has been run.
        texts: files that `aegis-vqa --benchmark=text:FILE` takes: questions without pictures (`.jsonl`) and running
            text (`.txt`), which each trained backbone is asked, or reads, too. They may be added to what has been run.
        frames: at which the action error is measured.
        jobs: trainings at once.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        redraw: instead of running anything, compute intervals, table and figures again from the runs in this
            `ablation.json` and write them to `output_dir`.
    """

    output_dir: Path = Path("outputs/ablation")
    variants: list[str] = field(default_factory=lambda: ["gaussian", "subspace", "lora"])
    seeds: int = 3
    split: str = "test"
    tasks: str = "reach"
    episodes: int = 600
    data_seed: int = 0
    scatter: float = 0.0
    held_out: int = 100
    steps: int = 400
    batch_size: int = 16
    lr: float = 2e-3
    lr_backbone: float = 1.2e-3
    flow_samples: int = 4
    probe_freq: int = 0
    cameras: str | None = "wrist"
    policy: list[str] = field(default_factory=list)
    vlm: str = "embedded"
    start: Path | None = None
    anchor_vqa: str = "tabletop"
    samples: int = 1000
    benchmarks: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    frames: int = 1000
    jobs: int = 2
    device: str | None = None
    redraw: Path | None = None


def main() -> None:
    """Entry point of `aegis-ablate`."""
    cli.run(AblateConfig, _work)


def _work(config: AblateConfig) -> None:
    from aegis_eval.commands.work.ablate import ablate

    ablate(config)


if __name__ == "__main__":
    main()
