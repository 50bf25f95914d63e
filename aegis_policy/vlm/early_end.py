"""A model that ends earlier, of the same modules."""

import copy

from torch import nn

from aegis_policy.support.errors import AegisError


def require_depth(depth: int | None, layers: int, name: str) -> None:
    """Make sure that a model can end after so many of its decoder layers; None for all.

    Raises:
        AegisError: there are not so many.
    """
    if depth is not None and not 1 <= depth <= layers:
        raise AegisError(
            f"--policy.backbone_depth={depth}: {name} has {layers} decoder layers; take 1 to {layers}."
        )


def ending_early[Model: nn.Module](model: Model, layers: str, depth: int) -> Model:
    """A view of a model whose list of layers ends after the first `depth`.

    It shares every weight, buffer and hook with the model, and stays right only until modules on the way to the list
    are replaced: make it anew for each pass, which takes microseconds.

    Args:
        model: whose `forward` runs through the list.
        layers: dotted path from the model to the list.
        depth: of it.
    """
    name, _, rest = layers.partition(".")
    view, below = copy.copy(model), model.get_submodule(name)
    if rest:
        below = ending_early(below, rest, depth)
    else:
        assert isinstance(below, nn.ModuleList)
        below = below[:depth]
    view.__dict__["_modules"] = {**model._modules, name: below}
    return view
