"""Adapters merged into the weights that they stand beside."""

import copy

from torch import nn


def merged[Model: nn.Module](model: Model) -> Model:
    """The model itself, or, if it has adapters, a copy that has them merged into its weights."""
    if not any("lora_" in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import (
        BaseTunerLayer,
    )  # takes seconds to import, and few models have adapters

    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    return model
