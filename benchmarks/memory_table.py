"""What training a PaliGemma-2-3B takes before activations and expert, in counted bytes, under the aids that save some.

    python benchmarks/memory_table.py

Nothing is measured: parameters are counted on the architecture of the published checkpoint (its config.json), without
weights, and multiplied as `aegis-doctor` does.
"""

import torch
from _shapes import PALIGEMMA2_3B_DECODER, PALIGEMMA2_3B_TOWER
from transformers import AutoModelForImageTextToText, PaliGemmaConfig

from aegis_eval.doctor.files import Training

_TEXT = {"model_type": "gemma2", "vocab_size": 257216, **PALIGEMMA2_3B_DECODER}
_VISION = {
    "model_type": "siglip_vision_model",
    "projection_dim": 2304,
    "vision_use_head": False,
    **PALIGEMMA2_3B_TOWER,
}
_ROWS = (("none", 32), ("none", 8), ("aegis", 32), ("aegis", 8), ("lora", 32))


def main() -> None:
    config = PaliGemmaConfig(text_config=_TEXT, vision_config=_VISION, projection_dim=2304)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    learning = sum(p.numel() for p in model.model.language_model.layers.parameters())
    frozen = sum(p.numel() for p in model.parameters()) - learning
    print(
        f"{(frozen + learning) / 1e9:.2f} billion parameters, {learning / 1e9:.2f} of them in decoder layers\n"
    )
    print(
        "| `--policy.protection` | `--policy.optimizer_bits` | float32 | `--policy.frozen_dtype=bfloat16` |"
    )
    print("|---|---|---|---|")
    for protection, bits in _ROWS:
        sizes = [
            Training(protection, dtype, bits).bytes(frozen, learning) / 1e9
            for dtype in ("float32", "bfloat16")
        ]
        print(f"| `{protection}` | {bits} | " + " | ".join(f"{size:.1f} GB" for size in sizes) + " |")


if __name__ == "__main__":
    main()
