"""Trains a small protected model as one process and as two, and writes what each ended with.

Run as `python two_ranks.py FOLDER`. The ranks are forked from a parent that has imported torch and done
nothing else with it.
"""

import sys
from multiprocessing import get_context
from pathlib import Path

import torch
import torch._dynamo  # optimizers import it; once, before the fork
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from aegis_policy.isolation import GaussianAnchor, GradientIsolator, ProjectedAdamW
from aegis_policy.isolation._anchor_gradients import AnchorGradients

L, B, T, D = 3, 8, 5, 6
STEPS = 6
VALID_TOKENS_B = [
    [5, 5, 5, 5, 1, 1, 1, 1],
    [5, 4, 3, 2, 1, 2, 3, 4],
    [5, 5, 5, 5, 1, 0, 0, 0],
    [0, 0, 0, 0, 5, 5, 5, 5],  # rank 0 has padding only
    [1, 1, 1, 1, 5, 4, 3, 2],
    [3, 3, 3, 3, 3, 3, 3, 3],
]


class Policy(nn.Module):
    """Takes the anchor gradient inside forward(), as a LeRobot policy has to."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*[nn.Sequential(nn.Linear(D, D), nn.Tanh()) for _ in range(L)])
        self.head = nn.Linear(D, 2)
        self.isolator = GradientIsolator(self.layers, GaussianAnchor(torch.randn(L, D), torch.rand(L, D), 1))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        with self.isolator.collect(mask_BT):
            loss = (self.head(self.layers(x_BTD)) - 1).square().mean()
        self.isolator.accumulate()
        return loss


def train(rank: int, world_size: int, dtype: torch.dtype, folder: Path) -> None:
    torch.manual_seed(0)
    policy = Policy().to(dtype)
    optimizer = ProjectedAdamW(policy.parameters(), policy.isolator, lr=1e-2)
    model = DistributedDataParallel(policy) if world_size > 1 else policy
    share = slice(rank * B // world_size, (rank + 1) * B // world_size)
    metrics = []
    for step in range(STEPS):
        x_BTD = torch.randn(B, T, D, generator=torch.Generator().manual_seed(step)).to(dtype)
        mask_BT = torch.arange(T) < torch.tensor(VALID_TOKENS_B[step])[:, None]
        model(x_BTD[share], mask_BT[share]).backward()
        optimizer.step()
        optimizer.zero_grad()
        metrics.append(policy.isolator.metrics())
    result = {"parameters": policy.state_dict(), "metrics": metrics}
    torch.save(result, folder / f"{dtype}-{rank}-of-{world_size}.pt".removeprefix("torch."))


def reduce_what_only_rank_0_has(rank: int, folder: Path) -> None:
    parameters = [
        [nn.Parameter(torch.ones(2, 3)), nn.Parameter(torch.ones(4))],
        [nn.Parameter(torch.ones(5))],
    ]
    gradients = AnchorGradients(parameters)
    if rank == 0:
        gradients.add([torch.full((2, 3), 2.0), None, torch.full((5,), 3.0)])
    total = gradients.reduce()
    gradients.clear()
    try:
        gradients.reduce()
        error = None
    except RuntimeError as refusal:
        error = str(refusal)
    torch.save({"total": total, "error": error}, folder / f"reduced-{rank}.pt")


def run_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for dtype in (torch.float64, torch.float32):
        train(rank, 2, dtype, folder)
    reduce_what_only_rank_0_has(rank, folder)
    dist.destroy_process_group()


def main(folder: Path) -> None:
    ranks = [get_context("fork").Process(target=run_rank, args=(rank, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit("a rank failed")
    for dtype in (torch.float64, torch.float32):
        train(0, 1, dtype, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
