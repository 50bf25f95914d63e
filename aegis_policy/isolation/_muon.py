"""Muon beside another optimizer, for the parameter groups that ask for it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon, Optimizer

_OF_MUON = ("momentum", "nesterov", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")
"""What its groups hold besides learning rate and weight decay."""


class MuonStep(Optimizer):
    """Mixed into an optimizer, it has Muon step the groups of matrices that hold `muon=True`.

    Steps are scaled to the size of AdamW's (arXiv 2502.16982), so that both take the same learning rates; both share
    state and groups, so that a schedule and a checkpoint see one optimizer.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimizer's; one for Muon has that one's options, those that it does not bring by default."""
        if param_group.get("muon"):
            parameters = param_group["params"]
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            own = Muon(parameters, adjust_lr_fn="match_rms_adamw").defaults
            param_group = {**{name: own[name] for name in _OF_MUON}, **param_group, "params": parameters}
        super().add_param_group(param_group)

    def step(self, closure: Any = None) -> Any:
        """Step as the other optimizer does, then by Muon, unless a gradient scaler found what is not finite."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        everything = self.param_groups
        self.param_groups = self._groups(muon=False)
        try:
            super().step()
        finally:
            self.param_groups = everything
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if (groups := self._groups(muon=True)) and (found_inf is None or not found_inf.any()):
            if scale is not None:
                for gradient in (p.grad for group in groups for p in group["params"] if p.grad is not None):
                    gradient.div_(scale)
            muon = Muon(groups[0]["params"])
            muon.param_groups, muon.state = groups, self.state
            muon.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As the other optimizer's, which knows its own groups alone."""
        whole = state["param_groups"]
        super().__setstate__({**state, "param_groups": [each for each in whole if not each.get("muon")]})
        self.param_groups = whole

    def _groups(self, *, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if bool(group.get("muon")) == muon]
