"""Parameters that lie in pieces on several devices, as FSDP keeps them: refused, for a protection would pass them by.

A projector holds the parameters that were there when training began, which FSDP replaces, and an anchor gradient is
taken beside the backward pass in which FSDP gathers.
"""

import os

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from aegis_policy.support.errors import AegisError


def refuse_sharding(model: nn.Module) -> None:
    """See that every parameter of a model to be trained is whole.

    Accelerate says in the environment that it is going to shard, before it does; while a sharded module runs, its
    parameters may be whole for a moment.

    Raises:
        AegisError: one is not, or will not be.
    """
    announced = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if announced or any(
        isinstance(part, DTensor | FSDPModule) for part in (*model.parameters(), *model.modules())
    ):
        raise AegisError(
            "This training is sharded (FSDP, DTensor), and no protection reaches parameters in pieces: leave "
            "--parallelism.dp_shard out and launch with torchrun or accelerate's MULTI_GPU (DDP) instead."
        )
