"""Optimizers that let projectors bend their step."""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from aegis_policy.isolation._masters import masters_in_place, round_
from aegis_policy.isolation._projector import Projector


class ProjectedStep(Optimizer):
    """Mixed into an optimizer, as `ProjectedAdamW` is, it lets projectors change the gradients before the step, or the
    update after it.

    Parameters that no projector knows (an action expert's) step as ever. Clipping gradients before `step()`
    only scales what a projection leaves. `zero_grad()` clears the projectors too, which also covers
    steps that a gradient scaler skipped. Projectors are no part of `state_dict()`: checkpoints are those of
    the optimizer.

    A projector that acts on updates costs, inside `step()`, one copy of the parameters it protects. Weights in 16 bits
    step as float32 masters (`_masters`), which `state_dict()` holds.

    Args:
        params: parameters or parameter groups.
        projectors: applied in this order, those that act on gradients before the optimizer and the others after it.
        options: of the optimizer: `lr`, `weight_decay`, ...
    """

    projectors: tuple[Projector, ...] | None = None

    def __init__(self, params: ParamsT, *projectors: Projector, **options: Any) -> None:
        super().__init__(params, **options)
        self.projectors = projectors

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Project the gradients, step, project the update.

        Args:
            closure: computes the loss and both gradients again and returns the loss; it runs before the
                projection.

        Raises:
            RuntimeError: the step has no anchor gradient, a gradient is not finite, or the optimizer was unpickled and
                has no projectors. No weight has moved.
        """
        if self.projectors is None:
            raise RuntimeError(
                f"This {type(self).__name__} was unpickled or copied and has no projectors: "
                "make a new one and give it the old one's state_dict()."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_finite()
        for projector in self.projectors:
            projector.prepare()
        with torch.no_grad(), masters_in_place(self) as master_of:
            for projector in self.projectors:
                if projector.acts_on == "gradient":
                    projector.project_(lambda p: master_of.get(p, p).grad)
            self._step_and_project(
                [projector for projector in self.projectors if projector.acts_on == "update"], master_of
            )
            round_(master_of)
        return loss

    def _require_finite(self) -> None:
        if getattr(self, "found_inf", None) is not None:
            return  # a gradient scaler has looked, and a fused step leaves such gradients out
        for index, group in enumerate(self.param_groups):
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if not get_total_norm(gradients, norm_type=math.inf).isfinite():
                raise RuntimeError(
                    f"The gradient of the {group.get('name', index)} parameters is not finite, so no weight was moved: "
                    "look for outliers in the batch, or lower the learning rate."
                )

    def _step_and_project(self, projectors: list[Projector], master_of: dict[Tensor, Tensor]) -> None:
        """The optimizer's step, then that step again as the projectors leave it.

        Weights close to each other subtract exactly (Sterbenz), so a step that nobody changes comes back bit for bit.
        """
        unique = {id(p): p for projector in projectors for p in projector.protected if p.grad is not None}
        moved = [master_of.get(p, p).detach() for p in unique.values()]
        descent = [p.clone() for p in moved]
        super().step()
        if not moved:
            return
        torch._foreach_sub_(descent, moved)
        torch._foreach_add_(moved, descent)
        step_of = dict(zip(unique, descent, strict=True))
        for projector in projectors:
            projector.project_(lambda p: step_of.get(id(p)))
        torch._foreach_sub_(moved, descent)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the optimizer's; the moments of weights in 16 bits, and their masters, stay float32."""
        with masters_in_place(self, without_gradient=True):
            super().load_state_dict(state_dict)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and what the projectors keep of the step."""
        super().zero_grad(set_to_none)
        for projector in self.projectors or ():
            projector.clear()


class ProjectedAdamW(ProjectedStep, AdamW):
    """AdamW with a `ProjectedStep`."""
