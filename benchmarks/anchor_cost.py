"""What `aegis-anchor` costs over reading the same questions once: time in one process, taking turns, and memory.

    python benchmarks/anchor_cost.py [--vlm=embedded,DIR,wide-layers] [--questions=512] [--batch-size=32] [--rounds=3]
        [--share=0.07] [--json=FILE]

The other side is a plain forward pass over each question with the model's answer behind it. The pass includes the
answers, the eigenvectors at its end and the gradient of some answers. Ratios are medians over rounds, in which the
sides take turns, of the processor's time, which a busy machine disturbs least (with `--device=cuda`, of the clock's).
The goal is 1.5. `wide-layers` is a random decoder of two layers as wide as PaliGemma 2's, 2,304 and 9,216, which is
asked an eighth of the questions.

Memory is what the sketches hold beside the bound that `CovarianceSketch` states, and the growth of the resident set.
"""

import argparse
import re
import time
from collections.abc import Callable
from itertools import batched
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _random_vlm import random_vlm
from _report import report

from aegis_policy.anchors.building import AnchorBuilder
from aegis_policy.isolation import DEFAULT_SHARE
from aegis_policy.isolation._sketch import WHOLE_WIDTH
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample, load_vqa

WIDE_LAYERS = "wide-layers"


def memory(key: str) -> float:
    """`VmRSS` (now) or `VmHWM` (at its highest) of this process, in MB."""
    (kilobytes,) = re.findall(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024 / 1e6


def seconds(do: Callable[[], object], device: str) -> float:
    clock = time.process_time if device == "cpu" else time.perf_counter
    started = clock()
    do()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - started


def bound(width: int, share: float) -> float:
    """What a sketch may hold, in MB: see `CovarianceSketch`."""
    size = min(width, 1.25 * share * width + 8)
    return (8 * width**2 if width <= WHOLE_WIDTH else 12 * width * size) / 1e6 + 1024 * width / 1e6


def measure(vlm: VLMBackbone, examples: list[VQAExample], arguments: argparse.Namespace) -> dict[str, float]:
    """Ratios and memory of one VLM."""
    batches = list(batched(examples, arguments.batch_size))
    answers = [
        vlm.answer([each.image for each in batch], [each.question for each in batch]) for batch in batches
    ]

    @torch.no_grad()
    def read() -> None:
        for batch, said in zip(batches, answers, strict=True):
            images, questions = [each.image for each in batch], [each.question for each in batch]
            vlm.answer_logits(vlm.answer_inputs(images, questions, said))

    def gather() -> None:
        nonlocal builder
        builder = AnchorBuilder(vlm, ["subspace"], arguments.share)
        for number, batch in enumerate(batches):
            builder.remember(batch)
            builder.add_questions(batch, number)

    builder = AnchorBuilder(vlm, ["subspace"], arguments.share)
    before = memory("VmRSS")
    rounds = []
    for _ in range(arguments.rounds):
        sides = (read, gather, lambda: builder.anchor({}))
        rounds.append([seconds(side, arguments.device) for side in sides])
    held = {key: x.numel() * x.element_size() / 1e6 for key, x in builder.state().items()}
    widths = {
        key.split("inputs.")[1].removesuffix(".sketch"): len(x)
        for key, x in builder.state().items()
        if key.endswith(".sketch")
    }
    return {
        "forward pass, s": median(each[0] for each in rounds),
        "ratio of gathering": median(each[1] / each[0] for each in rounds),
        "ratio of eigenvectors and gradient": median(each[2] / each[0] for each in rounds),
        "ratio of the whole pass (goal 1.5)": median((each[1] + each[2]) / each[0] for each in rounds),
        "sketches": float(len(widths)),
        "sketches hold, MB": sum(held.values()),
        "their stated bound, MB": sum(bound(width, arguments.share) for width in widths.values()),
        "widest": float(max(widths.values())),
        "peak over the model, MB": memory("VmHWM") - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default=f"embedded,{WIDE_LAYERS}", help="with commas")
    parser.add_argument("--questions", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=DEFAULT_SHARE)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, object] = {"questions": arguments.questions, "share": arguments.share}
    for name in arguments.vlm.split(","):
        if name == WIDE_LAYERS:
            vlm = random_vlm("paligemma2-3b", 2)
            count = max(1, arguments.questions // 8)
            pictures = np.random.default_rng(0).integers(0, 256, (count, 224, 224, 3), np.uint8)
            examples = [VQAExample(picture, "what is on the table") for picture in pictures]
        else:
            vlm = VLMBackbone.from_pretrained(name)
            examples = list(load_vqa("tabletop", "--vlm", count=arguments.questions))
        vlm = vlm.to(arguments.device).eval()
        measured = measure(vlm, examples, arguments)
        figures |= {f"{name}: {key}": value for key, value in measured.items()}
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
