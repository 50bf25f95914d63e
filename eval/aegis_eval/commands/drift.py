"""`aegis-drift`: how far have the backbone's activations moved from the pretrained model's, on the same questions?

Answers change only where activations did; how far those moved, layer by layer, says where a protection held. Relative
drift of a layer is ||h - h0|| / ||h0||, h and h0 being the two models' hidden states at all tokens of a question.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_eval.checkpoints import PolicySource
from aegis_policy.support import cli


@dataclass
class DriftConfig:
    """Flags of `aegis-drift`.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        pretrained: the VLM to compare with, by default the one the policy was made from.
        benchmark: whose questions are read, see `aegis-vqa`.
        split: of the benchmark.
        samples: number of questions.
        seed: another seed reads others.
        batch_size: questions at a time.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        output: a JSON file, replaced once the new one is complete.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    pretrained: str | None = None
    benchmark: str = "tabletop"
    split: str = "test"
    samples: int = 200
    seed: int = 0
    batch_size: int = 32
    device: str | None = None
    output: Path = Path("outputs/drift.json")
    cache_dir: Path | None = None


def main() -> None:
    """Entry point of `aegis-drift`."""
    cli.run(DriftConfig, _work, file="output")


def _work(config: DriftConfig) -> None:
    from aegis_eval.commands.work.drift import measure_drift

    measure_drift(config)


if __name__ == "__main__":
    main()
