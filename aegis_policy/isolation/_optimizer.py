"""AdamW that projects the task gradient before it steps."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch.optim import AdamW
from torch.optim.optimizer import ParamsT

from aegis_policy.isolation._isolator import GradientIsolator


class ProjectedAdamW(AdamW):
    """AdamW whose `step()` first projects `p.grad` of the isolator's parameters.

    Parameters that the isolator does not know (an action expert's) step as in plain AdamW. Clipping gradients
    before `step()` is harmless: the projection is linear in the task gradient. `zero_grad()` forgets the
    anchor gradients too, which also covers steps that a gradient scaler skipped. The isolator is no part of
    `state_dict()`: checkpoints are those of AdamW.

    Args:
        params: parameters or parameter groups, as for AdamW.
        isolator: holds the anchor gradients of the step.
        adamw: `lr`, `betas`, `eps`, `weight_decay`, ... of AdamW.
    """

    isolator: GradientIsolator | None = None

    def __init__(self, params: ParamsT, isolator: GradientIsolator, **adamw: Any) -> None:
        super().__init__(params, **adamw)
        self.isolator = isolator

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Project, then step.

        Args:
            closure: computes the loss and both gradients again and returns the loss; it runs before the
                projection.

        Raises:
            RuntimeError: the step has no anchor gradient, or the optimizer was unpickled and has no isolator.
        """
        if self.isolator is None:
            raise RuntimeError(
                "This ProjectedAdamW was unpickled or copied and has no isolator: "
                "make a new one and give it the old one's state_dict()."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.isolator.project_()
        super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the task gradients and the anchor gradients."""
        super().zero_grad(set_to_none)
        if self.isolator is not None:
            self.isolator.clear()
