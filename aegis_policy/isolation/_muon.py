"""Muon beside another optimizer, for the parameter groups that ask for it."""

from typing import Any

from torch.optim import Muon, Optimizer
from torch.optim.optimizer import ParamsT

_OF_MUON = ("momentum", "nesterov", "ns_coefficients", "ns_steps", "eps", "adjust_lr_fn")
"""What its groups hold besides learning rate and weight decay."""


class MuonStep(Optimizer):
    """Mixed into an optimizer, it has Muon step the groups of matrices that hold `muon=True`.

    Steps are scaled to the size of AdamW's (arXiv 2502.16982), so that both take the same learning rates; both share
    state and groups, so that a schedule and a checkpoint see one optimizer.
    """

    def __init__(self, params: ParamsT, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self._groups(muon=True):
            own = Muon(group["params"], adjust_lr_fn="match_rms_adamw").defaults
            group.update({name: own[name] for name in _OF_MUON})

    def step(self, closure: Any = None) -> Any:
        """Step as the other optimizer does, then by Muon, unless a gradient scaler found what is not finite."""
        everything = self.param_groups
        self.param_groups = self._groups(muon=False)
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = everything
        found_inf = getattr(self, "found_inf", None)
        if (groups := self._groups(muon=True)) and (found_inf is None or not found_inf.any()):
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
