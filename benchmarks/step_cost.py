"""What each protection costs a training step over `none`: time in one process, taking turns, and peak memory.

    python benchmarks/step_cost.py [--vlm=embedded|wide|smolvlm-256m|paligemma2-3b|DIR] [--batch-size=16] [--rounds=30]
        [--flow-samples=4] [--sides ...] [--json=FILE]

In a round every side makes one step, in an order that moves on by one from round to round: a busy machine disturbs all
alike. Time ratios are medians over windows of ten rounds, each of which holds one step in which `aegis` puts weights
back. Targets: `aegis gaussian` 1.35, `aegis subspace` (the default) 1.05, with a `DIR` of a real VLM too. The
gaussian anchor's second backward runs through the backbone alone, so its share falls with the work of the expert, that
is with more flow samples. The shares of `forward`, `backward`, `clipping` and `optimizer` are of a side's own step: the
second backward is part of `forward`, the projection of `optimizer`.

Memory is the difference of two peaks. On a CPU each side takes three steps in a process of its own and the peak is its
resident set, malloc giving back at once what is freed (as it comes, it keeps up to a tenth of the whole, more or less
by chance); on a GPU it is what torch allocated. The goal is at most one copy of the gradients and the anchors, which
are printed too; with `--vlm=embedded` both are smaller than what a resident set varies by.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import batched
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _random_policy import make_policy, random_batch, save_random_anchor
from _random_vlm import resolve
from _report import report
from _turns import take_turns
from torch import nn

from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.protections.subspace import HOLD_EVERY

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "freeze": ("freeze", {}),
    "stop_gradient": ("stop_gradient", {}),
    "lora": ("lora", {}),
    "lora, null space": ("lora", {"lora_null_space": True}),
    "w2_penalty": ("w2_penalty", {}),
    "l2_sp": ("l2_sp", {}),
    "decoupled_l2_sp": ("decoupled_l2_sp", {}),
    "maps": ("maps", {}),
    "ewc": ("ewc", {}),
    "distill": ("distill", {}),
    "replay": ("replay", {}),
    "knowledge_insulation": ("knowledge_insulation", {}),
    "aegis gaussian": ("aegis", {"anchor": "gaussian"}),
    "aegis subspace": ("aegis", {"anchor": "subspace"}),
}
ANCHORS = {
    "w2_penalty": "gaussian",
    "ewc": "fisher",
    "lora, null space": "subspace",
    "aegis gaussian": "gaussian",
    "aegis subspace": "subspace",
}
"""Side -> the kind of anchor that it needs."""
_WARM_UP = 3
_MEMORY_STEPS = 3
_PARTS = ("forward", "backward", "clipping", "optimizer")


class Side:
    """A policy in training, which makes one step after the other on the same batch.

    Args:
        policy: on its device.
        batch: of the policy's features.
        wrap: what makes of the policy the module that a trainer runs: DDP.
    """

    def __init__(
        self,
        policy: AegisPolicy,
        batch: dict[str, Any],
        wrap: Callable[[AegisPolicy], nn.Module] = lambda policy: policy,
    ) -> None:
        self.policy = policy.train()
        self.optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
        self.batch = batch
        self._model = wrap(policy)

    def step(self) -> dict[str, float]:
        """One step as `lerobot-train` does it: seconds of processor time (`cpu`), of wall-clock and of each part."""
        started = time.process_time()
        clock = Clock(self.batch["action"].is_cuda)
        loss, _ = self._model(self.batch)
        clock.lap("forward")
        loss.backward()
        clock.lap("backward")
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.policy.config.optimizer_grad_clip_norm)
        clock.lap("clipping")
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.lap("optimizer")
        return {**clock.laps, "wall": sum(clock.laps.values()), "cpu": time.process_time() - started}


def make_side(name: str, arguments: argparse.Namespace) -> Side:
    """All sides live together, so name few of them with `--sides` where memory is short."""
    torch.manual_seed(0)
    protection, options = SIDES[name]
    policy = make_policy(
        arguments.vlm,
        protection,
        arguments.image_size,
        arguments.device,
        flow_samples=arguments.flow_samples,
        anchor_path=arguments.anchor if name in ANCHORS else None,
        **options,
    )
    chunk_size = policy.config.chunk_size
    return Side(
        policy, random_batch(arguments.batch_size, arguments.image_size, chunk_size, arguments.device)
    )


class Clock:
    """Seconds between laps, each of which waits for the GPU; laps of one name add up."""

    def __init__(self, cuda: bool) -> None:
        self.laps: dict[str, float] = {}
        self._cuda = cuda
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self._cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def time_ratios(names: list[str], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of a step of every side, its ratio to `none` in the same rounds, the shares of its parts."""
    sides = {name: make_side(name, arguments) for name in names}
    rounds = take_turns({name: side.step for name, side in sides.items()}, arguments.rounds, _WARM_UP)
    measured = [
        {name: {part: sum(each[name][part] for each in window) for part in window[0][name]} for name in names}
        for window in batched(rounds, HOLD_EVERY)
    ]
    return {
        name: {
            "seconds": median(costs[name]["wall"] for costs in measured) / HOLD_EVERY,
            "ratio": median(costs[name]["wall"] / costs["none"]["wall"] for costs in measured),
            "ratio of processor time": median(
                costs[name]["cpu"] / costs["none"]["cpu"] for costs in measured
            ),
            **{
                f"share of {part}": median(costs[name][part] / costs[name]["wall"] for costs in measured)
                for part in _PARTS
            },
        }
        for name in names
    }


def peak_megabytes(name: str, arguments: argparse.Namespace) -> float:
    """Peak memory of a few steps of one side, in this process."""
    side = make_side(name, arguments)
    if arguments.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(_MEMORY_STEPS):
        side.step()
    if arguments.device != "cpu":
        return torch.cuda.max_memory_allocated() / 1e6
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) * 1024 / 1e6  # unlike ru_maxrss, this forgets what the parent process held


def gradient_megabytes(arguments: argparse.Namespace) -> float:
    """One copy of the gradients that a protection has to do with."""
    learning = (p for p in make_side("none", arguments).policy.vlm.parameters() if p.requires_grad)
    return sum(p.numel() * p.element_size() for p in learning) / 1e6


def peak_in_a_process_of_its_own(name: str, vlm: str, anchor: Path) -> float:
    """`peak_megabytes` of one side with this command's flags and its anchor, which is made here and not there."""
    given = [*sys.argv[1:], f"--vlm={vlm}"]  # the last of two flags counts
    command = [sys.executable, __file__, *given, f"--peak-of={name}", f"--anchor={anchor}"]
    frees_at_once = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=frees_at_once)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vlm", default="embedded", help="a directory, or a shape to be given random weights"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=30, help=f"a multiple of {HOLD_EVERY}")
    parser.add_argument("--flow-samples", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="besides none")
    parser.add_argument(
        "--peak-of", choices=SIDES, help="print the peak memory of one side in MB, and no more"
    )
    parser.add_argument("--anchor", type=Path, help="default: one of random pictures")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print(peak_megabytes(arguments.peak_of, arguments))
        return
    names = ["none", *(name for name in arguments.sides if name != "none")]
    figures: dict[str, Any] = {
        "vlm": arguments.vlm,
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "flow_samples": arguments.flow_samples,
    }
    with tempfile.TemporaryDirectory() as folder:
        arguments.vlm = resolve(arguments.vlm, Path(folder))
        arguments.anchor = arguments.anchor or save_random_anchor(
            arguments.vlm,
            arguments.image_size,
            Path(folder),
            {"gaussian", *(ANCHORS[name] for name in names if name in ANCHORS)},
        )
        for name, costs in time_ratios(names, arguments).items():
            figures |= {f"{name}: {key}": value for key, value in costs.items()}
        peaks = {name: peak_in_a_process_of_its_own(name, arguments.vlm, arguments.anchor) for name in names}
        figures["anchor file, MB"] = arguments.anchor.stat().st_size / 1e6
        figures["gradients of all that learns in the backbone, MB"] = gradient_megabytes(arguments)
    figures |= {f"{name}: peak over none, MB": peak - peaks["none"] for name, peak in peaks.items()}
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
