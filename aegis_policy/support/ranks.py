"""What the ranks of a data-parallel run agree on; in a single process, each of these is the obvious thing."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

_kept: list[dist.ProcessGroup | None] = []


def count() -> int:
    """How many ranks train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is."""
    return dist.get_rank() if count() > 1 else 0


def first_alone[T](load: Callable[[], T]) -> T:
    """`load()`, which may fill a cache that all ranks share: the first rank fills it before the others read."""
    if count() > 1 and index() > 0:
        dist.barrier()
    loaded = load()
    if count() > 1 and index() == 0:
        dist.barrier()
    return loaded


def share(draw: Callable[[int], Tensor], like: Tensor) -> Tensor:
    """This rank's part of one random draw for the whole global batch, a row for each row of `like`.

    LeRobot seeds all ranks alike: if each drew only for itself, all would learn from the same noise. Rank r holds
    the r-th block of the global batch (accelerate's `BatchSamplerShard`), and so of the draw. Its seed is the first
    rank's: an evaluation during training, which only that rank runs, moves its generator on alone.
    """
    seed = torch.randint(2**62, (1,))
    if count() > 1:
        seed = seed.to(like.device)
        dist.broadcast(seed, src=0)
    rank, rows = index(), len(like)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(seed))
        return draw(count() * rows)[rank * rows : (rank + 1) * rows].to(like)


def gather[K, V](own: dict[K, V]) -> dict[K, V]:
    """What all ranks hold, on every one of them; later ranks win where keys are the same."""
    if count() == 1:
        return own
    held: list[dict[K, V]] = [{} for _ in range(count())]
    dist.all_gather_object(held, own)
    return {key: value for each in held for key, value in each.items()}


def keep_group() -> None:
    """Let the process group live as long as the process.

    LeRobot and accelerate drop it with the DDP wrapper at the end of training. PyTorch 2.11's gloo group then waits
    for its worker thread while holding the interpreter's lock; if that thread is just about to release its last
    tensor, for which it needs the lock, the process never ends.
    """
    if count() > 1 and not _kept:
        _kept.append(dist.group.WORLD)


def mean(x: Tensor) -> Tensor:
    """The mean of `x` over all ranks."""
    if count() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / count()


def all_true(flag: Tensor) -> bool:
    """Whether `flag` (a scalar) is true on every rank."""
    if count() == 1:
        return bool(flag)
    least = flag.to(torch.float32)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return bool(least)
