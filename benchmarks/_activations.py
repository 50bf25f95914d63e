"""What a forward pass keeps for its backward pass, counted in bytes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, UntypedStorage


def kept_bytes(forward: Callable[[], object], weights: Iterable[Tensor]) -> int:
    """Bytes of all tensors that `forward` saves for its backward pass; several views of one count once.

    Args:
        forward: runs forward once. What gradient checkpointing recomputes is not in it, what it begins from is.
        weights: kept anyway, and not counted.
    """
    own = {weight.untyped_storage().data_ptr() for weight in weights}
    kept: dict[int, UntypedStorage] = {}  # which also keeps their places from being used twice

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # an output that kept itself would never be freed

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in kept.values())
