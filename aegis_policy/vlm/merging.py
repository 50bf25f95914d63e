"""Adapters merged into the weights that they stand beside."""

import copy

from torch import nn


def has_adapters(model: nn.Module) -> bool:
    """Whether any adapter stands beside a weight."""
    return any("lora_" in name for name, _ in model.named_parameters())


def merged[Model: nn.Module](model: Model) -> Model:
    """The model itself, or, if it has adapters, a copy that has them merged into its weights."""
    return merge_(copy.deepcopy(model)) if has_adapters(model) else model


def merge_[Model: nn.Module](model: Model) -> Model:
    """Merge what adapters a model has into its weights, which become float32 there; returns the model."""
    if not has_adapters(model):
        return model
    from peft.tuners.tuners_utils import (
        BaseTunerLayer,  # takes seconds to import, and few models have adapters
    )

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer) and isinstance(module, nn.Module):
            module.float()
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model
