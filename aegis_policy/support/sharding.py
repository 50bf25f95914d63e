"""Parameters that lie in pieces on several devices: FSDP2 keeps the rows of each, and what acts on rows may act there.

All else is refused, for a protection would pass it by: other pieces than rows; a policy of which FSDP2 has only parts,
so that nobody brings the gradients of the rest together; LeRobot 0.6.1, which calls `forward` past what FSDP2 gathers.
"""

import os
from importlib.util import find_spec

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from aegis_policy.support.errors import AegisError

_WHOLE_MODULES = "lerobot.distributed"
"""What a LeRobot has that calls a sharded policy as a module."""


def refuse_sharding(model: nn.Module, *, but_rows: bool = False) -> bool:
    """See that every parameter of a model to be trained is whole, or that its pieces can be trained.

    Accelerate says in the environment that it is going to shard, before it does; while a sharded module runs, its
    parameters may be whole for a moment.

    Args:
        model: to be trained.
        but_rows: whether parameters may lie in pieces as FSDP2 keeps them.

    Returns:
        Whether they do, or will.

    Raises:
        AegisError: they do, and may not.
    """
    announced = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    pieces = [p for p in model.parameters() if isinstance(p, DTensor)]
    sharded = isinstance(model, FSDPModule)
    if not (announced or pieces or sharded or any(isinstance(part, FSDPModule) for part in model.modules())):
        return False
    known = sharded or (announced and not pieces and find_spec(_WHOLE_MODULES) is not None)
    if but_rows and known and all(map(_is_rows, pieces)):
        return True
    raise AegisError(
        "This training is sharded (FSDP, DTensor) in a way that its protection does not reach: leave "
        "--parallelism.dp_shard out and launch with torchrun or accelerate's MULTI_GPU (DDP) instead."
    )


def _is_rows(piece: DTensor) -> bool:
    return all(isinstance(each, Replicate) or each == Shard(0) for each in piece.placements)
