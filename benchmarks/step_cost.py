"""What protection costs a training step: `aegis` over `none`, same process, alternating steps.

    python benchmarks/step_cost.py [--vlm=embedded|DIR] [--batch-size=16] [--pairs=20] [--json=FILE]

Ratios are medians over pairs of neighbouring steps: a busy machine disturbs both alike. Target: 1.35.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _random_policy import make_policy, random_batch, report

from aegis_policy.modeling_aegis import AegisPolicy

_WARM_UP = 3


def training_step(
    policy: AegisPolicy, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> dict[str, float]:
    """One step as `lerobot-train` does it; seconds of wall-clock and of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    loss, _ = policy(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    if loss.is_cuda:
        torch.cuda.synchronize()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vlm", default="embedded")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    sides = {}
    for protection in ("none", "aegis"):
        policy = make_policy(arguments.vlm, protection, arguments.image_size, arguments.device).train()
        sides[protection] = policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())
    chunk_size = sides["none"][0].config.chunk_size
    batch = random_batch(arguments.batch_size, arguments.image_size, chunk_size, arguments.device)

    pairs = []
    for index in range(_WARM_UP + arguments.pairs):
        order = ("none", "aegis") if index % 2 else ("aegis", "none")
        pairs.append({name: training_step(*sides[name], batch) for name in order})
    pairs = pairs[_WARM_UP:]

    report(
        {
            "vlm": arguments.vlm,
            "batch_size": arguments.batch_size,
            "pairs": len(pairs),
            "none_seconds": median(pair["none"]["wall"] for pair in pairs),
            "aegis_seconds": median(pair["aegis"]["wall"] for pair in pairs),
            "ratio": median(pair["aegis"]["wall"] / pair["none"]["wall"] for pair in pairs),
            "ratio_of_processor_time": median(pair["aegis"]["cpu"] / pair["none"]["cpu"] for pair in pairs),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
