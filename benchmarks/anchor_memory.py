"""What `aegis-anchor` holds in memory besides the model: the bound that `anchors.factors` states, and what it came to.

    python benchmarks/anchor_memory.py [--layers=2] [--samples=64] [--rank=256] [--batch-size=8] [--json=FILE]

Decoder layers of PaliGemma-2-3B's shape (2,304 wide, 9,216 in the MLP) with random weights. Resident memory is read
before the first batch and at its highest after the last; the activations of one batch are in it too.
"""

import argparse
import re
from pathlib import Path

import numpy as np
from _random_vlm import random_vlm
from _report import report

from aegis_policy.anchors.building import AnchorBuilder
from aegis_policy.vqa.examples import VQAExample


def memory(key: str) -> float:
    """`VmRSS` (now) or `VmHWM` (at its highest) of this process, in MB."""
    (kilobytes,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def bound(builder: AnchorBuilder, rank: int) -> float:
    """What the sketches may take, in MB."""
    total = 0
    for layer in builder.vlm.linear_layers.values():
        for width in (layer.in_features, layer.out_features):
            total += 12 * width * min(width, 2 * rank)
    return total / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    vlm = random_vlm("paligemma2-3b", arguments.layers)
    vlm.requires_grad_(False)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.samples, 224, 224, 3), dtype=np.uint8)
    examples = [VQAExample(image, "what is on the table") for image in images]
    figures: dict[str, object] = {"decoder layers": arguments.layers, "rank": arguments.rank}
    parts = {"moments": ["gaussian"], "moments and factors": ["gaussian", "kronecker"]}
    for name, kinds in parts.items():
        before = memory("VmRSS")
        builder = AnchorBuilder(vlm, kinds, arguments.rank)
        for start in range(0, len(examples), arguments.batch_size):
            builder.add_questions(examples[start : start + arguments.batch_size], start)
        builder.anchor({})
        figures[f"{name}: peak over the model, MB"] = memory("VmHWM") - before
        if "kronecker" in kinds:
            figures["sketches by the stated bound, MB"] = bound(builder, arguments.rank)
            figures["full covariances would be, MB"] = sum(
                4 * (layer.in_features**2 + layer.out_features**2) / 1e6
                for layer in vlm.linear_layers.values()
            )
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
