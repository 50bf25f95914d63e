"""What protection costs a training step: `aegis` over `none`, same process, alternating steps.

    python benchmarks/step_cost.py [--vlm=embedded|DIR] [--batch-size=16] [--pairs=20] [--json=FILE]

Ratios are medians over pairs of neighbouring steps: a busy machine disturbs both alike. Target: 1.35. The second
backward runs through the backbone alone, so its share falls with the work of the expert: the ratio is printed for the
default number of flow samples and for a single one.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _random_policy import make_policy, random_batch
from _report import report

from aegis_policy.configuration_aegis import AegisConfig
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


def alternating_steps(arguments: argparse.Namespace, flow_samples: int) -> list[dict[str, dict[str, float]]]:
    """Costs of neighbouring steps of both sides, the first of a pair changing from pair to pair."""
    sides = {}
    for protection in ("none", "aegis"):
        policy = make_policy(
            arguments.vlm, protection, arguments.image_size, arguments.device, flow_samples=flow_samples
        ).train()
        sides[protection] = policy, policy.config.get_optimizer_preset().build(policy.get_optim_params())
    chunk_size = sides["none"][0].config.chunk_size
    batch = random_batch(arguments.batch_size, arguments.image_size, chunk_size, arguments.device)
    pairs = []
    for index in range(_WARM_UP + arguments.pairs):
        order = ("none", "aegis") if index % 2 else ("aegis", "none")
        pairs.append({name: training_step(*sides[name], batch) for name in order})
    return pairs[_WARM_UP:]


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
    torch.manual_seed(0)

    figures: dict[str, Any] = {"vlm": arguments.vlm, "batch_size": arguments.batch_size}
    figures["pairs"] = arguments.pairs
    for flow_samples in (AegisConfig.flow_samples, 1):
        pairs = alternating_steps(arguments, flow_samples)
        wall = [pair["aegis"]["wall"] / pair["none"]["wall"] for pair in pairs]
        cpu = [pair["aegis"]["cpu"] / pair["none"]["cpu"] for pair in pairs]
        name = f"flow_samples={flow_samples}"
        figures[f"{name}: none, seconds"] = median(pair["none"]["wall"] for pair in pairs)
        figures[f"{name}: aegis, seconds"] = median(pair["aegis"]["wall"] for pair in pairs)
        figures[f"{name}: ratio"] = median(wall)
        figures[f"{name}: ratio of processor time"] = median(cpu)
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
