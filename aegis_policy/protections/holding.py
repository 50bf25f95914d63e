"""Where protected weights must be held before somebody else sees them."""

from typing import TYPE_CHECKING, Any, Self

from torch import nn

from aegis_policy.protections.base import Protection

if TYPE_CHECKING:
    from aegis_policy.optimizer_aegis import PolicyParameters


class HoldsProtected(nn.Module):
    """Mixed into a policy before what makes it a module, it has the protected part of its weights held in time.

    The optimizer holds them in one of several steps alone (`subspace.HOLD_EVERY`).
    """

    protection: Protection
    _optimized: "PolicyParameters | None" = None
    """What the optimizer was given, once there is one."""

    def train(self, mode: bool = True) -> Self:
        """As any module's; what leaves training has its protected part held."""
        if self.training and not mode:
            self.hold()
        super().train(mode)
        return self  # LeRobot's own return nothing

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """As any module's, with the protected part held: weights are saved as this gives them."""
        self.hold()
        return super().state_dict(*args, **options)

    def hold(self) -> None:
        """Put back what may not have moved; of weights in 16 bits by way of their masters, which the optimizer has."""
        if self._optimized is not None and self._optimized.built is not None:
            self._optimized.built.hold_()
        else:
            for projector in self.protection.projectors:
                projector.hold_()
