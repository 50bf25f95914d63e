"""`aegis-vqa`: what can this backbone still answer?

Asks a VLM, or the VLM inside a policy checkpoint, a benchmark's questions and scores the answers against a blind
baseline, where there is one, and, sample by sample, against the pretrained model; or has both read running text.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class QuestionSource:
    """Where the questions of a public benchmark, or one's own, are.

    Attributes:
        path: `--vqa.path`, the folder with the official files and images, or a folder or hub id that the `datasets`
            library reads; by default the hub's copy that lmms-eval reads.
    """

    path: str | None = None


@dataclass
class VqaConfig:
    """Flags of `aegis-vqa`; exactly one of `--policy.path` and `--vlm` is given.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        vlm: a transformers directory, a hub id, or `embedded`.
        pretrained: the VLM to compare with, by default the one the policy was made from.
        pretrained_answers: the output folder of an `aegis-vqa --vlm=` that asked that VLM the same questions, which
            is then not asked again.
        benchmark: which questions: `tabletop`, `tabletop_composed`, `tabletop_robot`; `vqav2`, `okvqa`, `textvqa`,
            `gqa`, `pope`; with options `mmstar`, `realworldqa`, `ai2d`, `mmbench`, `mmmu`; `lerobot` for those
            in a LeRobotDataset; `custom` for one's own; or `text:FILE`, questions without a picture (FILE.jsonl) or
            running text (FILE.txt), which the pretrained model reads too.
        vqa: `--vqa.path`, for public benchmarks, `lerobot` and `custom`.
        split: of the benchmark, by default the one whose accuracy is reported.
        samples: number of questions, or as many as there are.
        seed: another seed asks about other images.
        batch_size: questions at a time.
        max_new_tokens: longest answer, by default 8, without a picture 24.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        output_dir: a new folder for `results.json` and `samples.jsonl`, by default `outputs/vqa/DATE_NAME`. An
            interrupted command that named it goes on where it was, when given again with the same model, questions,
            pictures, batch size and longest answer.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    vlm: str | None = None
    pretrained: str | None = None
    pretrained_answers: Path | None = None
    benchmark: str = "tabletop"
    vqa: QuestionSource = field(default_factory=QuestionSource)
    split: str | None = None
    samples: int = 1200
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int | None = None
    device: str | None = None
    output_dir: Path | None = None
    cache_dir: Path | None = None


def main() -> None:
    """Entry point of `aegis-vqa`."""
    cli.run(VqaConfig, _work)


def _work(config: VqaConfig) -> None:
    from aegis_eval.commands.work.vqa import evaluate

    evaluate(config)


if __name__ == "__main__":
    main()
