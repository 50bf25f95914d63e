"""Train policies for some steps on this rank's share of fixed global batches, and save their parameters.

Run by `test_two_processes.py` under torchrun with the file of the batches and folders: each holds a checkpoint,
`policy`, and gets a file a rank, and the folder that the rank saves a checkpoint to. It wraps and steps as
`lerobot-train` does: DDP with `find_unused_parameters`, clipping, the preset optimizer.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from aegis_policy.modeling_aegis import AegisPolicy

MICRO_BATCHES = {"accumulated": 2}
"""Folder -> how many of the batches make up a step there; in the others, each does."""


def train(checkpoint: Path, batches: Path, rank: int, ranks: int) -> dict[str, Any]:
    """The policy's parameters after its steps, and every batch's figures.

    A rank holds a block of the global batch, as accelerate deals it out, and takes its part of the draws.
    """
    policy = AegisPolicy.from_pretrained(checkpoint).train()
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    for projector in policy.protection.projectors:
        projector.every = 2  # of the few steps here
    wrapped = DistributedDataParallel(policy, find_unused_parameters=True) if ranks > 1 else policy
    micro, logged = MICRO_BATCHES.get(checkpoint.parent.name, 1), []
    torch.manual_seed(0)  # alike on all ranks, as `lerobot-train` seeds them
    for number, batch in enumerate(torch.load(batches, weights_only=True), 1):
        rows = len(batch["action"]) // ranks
        share = {key: value[rank * rows : (rank + 1) * rows] for key, value in batch.items()}
        last = number % micro == 0
        with nullcontext() if last or ranks == 1 else wrapped.no_sync():
            loss, figures = wrapped(share)
            (loss / micro).backward()
        logged.append(figures)
        if last:
            torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        if rank == 0:
            torch.randn(5)  # as when `lerobot-train` evaluates, which only the first rank does
    policy.save_pretrained(checkpoint.with_name(f"saved{rank}"))
    return {"parameters": dict(policy.named_parameters()), "figures": logged}


def main(batches: Path, folders: list[Path]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for folder in folders:
        torch.save(train(folder / "policy", batches, rank, ranks), folder / f"rank{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    first, *others = map(Path, sys.argv[1:])
    main(first, others)
