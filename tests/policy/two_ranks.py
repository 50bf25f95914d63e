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
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from aegis_policy.modeling_aegis import AegisPolicy

SHARDED = "sharded"
"""How the names of folders begin whose policies lie in pieces on two ranks, as FSDP2 keeps them."""
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
    sharded = checkpoint.parent.name.startswith(SHARDED) and ranks > 1
    if sharded:
        shard(policy, optimizer)
    wrapped = (
        DistributedDataParallel(policy, find_unused_parameters=True) if ranks > 1 and not sharded else policy
    )
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
    options = {"state_dict": _whole(policy)} if sharded else {}  # as LeRobot's main gives it
    policy.save_pretrained(checkpoint.with_name(f"saved{rank}"), **options)
    parameters = {
        name: p.full_tensor() if isinstance(p, DTensor) else p for name, p in policy.named_parameters()
    }
    return {"parameters": parameters, "figures": logged}


def _whole(policy: AegisPolicy) -> dict[str, torch.Tensor]:
    """The state of a sharded policy, on its first rank, each tensor in memory of its own as coming from a GPU."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {name: each.clone() for name, each in get_model_state_dict(policy, options=options).items()}


def shard(policy: AegisPolicy, optimizer: torch.optim.Optimizer) -> None:
    """Leave each rank some rows of every parameter, in the optimizer too, as accelerate's `prepare` does."""
    names = {p: name for name, p in policy.named_parameters()}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for part in (*policy.vlm.decoder_layers, *policy.expert.blocks):
        fully_shard(part, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    now = dict(policy.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [now[names[p]] for p in group["params"]]


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
