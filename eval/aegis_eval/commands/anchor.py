"""`aegis-anchor`: one pass of a pretrained VLM over VQA samples -> the static anchor that AEGIS protects.

No label is read: the anchor is about what the model knows, right or wrong.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class AnchorConfig:
    """Flags of `aegis-anchor`.

    Attributes:
        vlm: directory or hub id of the pretrained VLM, or `embedded`.
        policy: `--policy.path`, a policy instead, of whose VLM, as it is, the anchor will be: one of LeRobot's
            (`smolvla`, `pi0`, `pi05`, `pi0_fast`, `eo1`), or one that this package trained.
        vqa: where the samples come from: a benchmark of this package (its training split), a public one with the place
            of its files (`vqav2:DIR`, see docs/benchmarks.md), one's own: a folder with a `questions.jsonl` whose lines
            are {"image": file in that folder, "question": text}, or anything with such columns that `datasets` reads,
            the folder of a LeRobotDataset (its frames and instructions, as the policy sees them), `lerobot:FOLDER` (the
            questions in one), `text:FILE.jsonl` (questions without pictures), `text:FILE.txt` (paragraphs of running
            text between empty lines, which the language model reads plain), or several joined by `+`; what exists is
            taken whole, whatever its name holds.
            An anchor of text alone says nothing about the vision side. `tabletop` unless given, of the embedded VLM;
            another one has questions of its own.
        cameras: of a LeRobotDataset, the ones to look through, with commas; all unless given.
        kinds: what to gather: `subspace`, which is all that the default protection needs, `gaussian`, and `fisher` for
            `--policy.protection=ewc`, which needs questions and is as large as the model.
        share: of the directions of every linear layer's inputs to keep, in (0, 1]: the most that
            `--policy.anchor_share` can then protect; 0.07, as much as the default protection does, unless given.
        samples: how many of each source; one that holds fewer gives all it has.
        out: the anchor's file, replaced once the new one is complete. An interrupted pass is kept beside it, and
            the same command continues it.
        batch_size: samples at a time.
        seed: another seed takes other samples of a benchmark.
        device: `cuda` or `cpu`, by default CUDA if there is one.
    """

    vlm: str = "embedded"
    policy: PolicySource = field(default_factory=PolicySource)
    vqa: str | None = None
    cameras: str | None = None
    kinds: list[str] = field(default_factory=lambda: ["subspace"])
    share: float | None = None
    samples: int = 3_000
    out: Path = Path("anchor.safetensors")
    batch_size: int = 32
    seed: int = 0
    device: str | None = None


def main() -> None:
    """Entry point of `aegis-anchor`."""
    cli.run(AnchorConfig, _work, file="out")


def _work(config: AnchorConfig) -> None:
    from aegis_eval.commands.work.anchor import make_anchor

    make_anchor(config)


if __name__ == "__main__":
    main()
