"""`aegis-pretrain`: train the embedded VLM from scratch on questions about rendered tabletop scenes.

Data parallel through torchrun; an interrupted run continues where it last saved when the same command is given again.
"""

from dataclasses import dataclass, field
from pathlib import Path

from aegis_policy.support import cli
from aegis_policy.vlm.small_size import SmallVLMSize


@dataclass
class PretrainConfig:
    """Flags of `aegis-pretrain`."""

    out: Path = Path("outputs/pretrain/tabletop-vlm")
    """Where the finished model goes; until then the training state lives beside it in `<out>.training`."""
    size: SmallVLMSize = field(default_factory=SmallVLMSize)
    scenes: int = 60_000
    steps: int = 8_000
    batch_size: int = 48
    """Images a step over all processes."""
    questions: int = 8
    """Questions packed behind an image, besides its detection caption."""
    lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    vision_steps: int = 1_500
    """Steps before those in which only the vision side learns, see `aegis_eval.pretraining.vision_warmup`."""
    mixed_precision: str = "no"
    """`no` or `bf16`; bf16 pays on CUDA, not at this size on a CPU."""
    seed: int = 0
    eval_freq: int = 1_000
    save_freq: int = 100
    val_samples: int = 600
    """Validation questions asked every `eval_freq` steps."""
    card_samples: int = 10_000
    """Test questions behind the model card's table: about 2,000 scenes."""
    transfer_samples: int = 2_000
    """Questions of each kind it was not trained for, see `_TRANSFER`."""
    anchor_samples: int = 3_000
    cache_dir: Path | None = None
    """Where rendered scenes are kept, by default `~/.cache/aegis`."""


def main() -> None:
    """Entry point of `aegis-pretrain`."""
    cli.run(PretrainConfig, _work)


def _work(config: PretrainConfig) -> None:
    from aegis_eval.commands.work.pretrain import pretrain

    pretrain(config)


if __name__ == "__main__":
    main()
