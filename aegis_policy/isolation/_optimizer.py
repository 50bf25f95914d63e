"""Optimizers that let projectors bend their step."""

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch.nn.utils import get_total_norm
from torch.optim import AdamW, Optimizer
from torch.optim.optimizer import ParamsT

from aegis_policy.isolation._masters import masters_in_place, round_
from aegis_policy.isolation._muon import MuonStep
from aegis_policy.isolation._projector import Projector, whole_value


class ProjectedStep(Optimizer):
    """Mixed into an optimizer, as `ProjectedAdamW` is, it lets projectors change the gradients before the step, or the
    weights after it.

    Parameters that no projector knows (an action expert's) step as ever. Clipping gradients before `step()`
    only scales what a projection leaves. `zero_grad()` clears the projectors too, which also covers
    steps that a gradient scaler skipped. Projectors are no part of `state_dict()`: checkpoints are those of
    the optimizer.

    Weights in 16 bits step as float32 masters (`_masters`), which `state_dict()` holds.

    Args:
        params: parameters or parameter groups.
        projectors: applied in this order.
        options: of the optimizer: `lr`, `weight_decay`, ...
    """

    projectors: tuple[Projector, ...] | None = None

    def __init__(self, params: ParamsT, *projectors: Projector, **options: Any) -> None:
        super().__init__(params, **options)
        self.projectors = projectors
        self._steps = 0

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Project the gradients, step, hold the weights.

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
        rates = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        for projector in self.projectors:
            projector.prepare(rates.__getitem__)
        self._steps += 1
        with torch.no_grad(), masters_in_place(self) as master_of:
            for projector in self.projectors:
                projector.project_(lambda p: master_of.get(p, p).grad)
                projector.remember(lambda p: master_of.get(p, whole_value(p)))
            super().step()
            for projector in self.projectors:
                if self._steps % projector.every == 0:
                    projector.hold_(lambda p: master_of.get(p, whole_value(p)))
            round_(master_of)
        return loss

    @torch.no_grad()
    def hold_(self) -> None:
        """Hold the weights now, whichever step it is: whoever looks at them sees them as they are after a held step."""
        with masters_in_place(self, without_gradient=True) as master_of:
            for projector in self.projectors or ():
                projector.hold_(lambda p: master_of.get(p, whole_value(p)))
            round_(master_of)

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

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As the optimizer's; the moments of weights in 16 bits, and their masters, stay float32."""
        with masters_in_place(self, without_gradient=True):
            super().load_state_dict(state_dict)
        self._steps = int(max((state["step"] for state in self.state.values() if "step" in state), default=0))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients and what the projectors keep of the step."""
        super().zero_grad(set_to_none)
        for projector in self.projectors or ():
            projector.clear()


class ProjectedAdamW(ProjectedStep, MuonStep, AdamW):
    """AdamW with a `ProjectedStep`, and Muon for groups with `muon=True`.

    Whether it is `fused` is no part of its state: either goes on with the other's.
    """

    def state_dict(self) -> dict[str, Any]:
        """As AdamW's."""
        whole = super().state_dict()
        for group in whole["param_groups"]:
            group["fused"] = None
        return whole

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As AdamW's."""
        pairs = zip(state_dict["param_groups"], self.param_groups, strict=False)
        groups = [{**group, "fused": own["fused"]} for group, own in pairs]
        super().load_state_dict({**state_dict, "param_groups": groups})
