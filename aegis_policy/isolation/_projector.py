"""What the optimizer asks of everything that bends a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from operator import attrgetter

import torch
from torch import Tensor, nn

GradientOf = Callable[[nn.Parameter], Tensor | None]
"""Parameter -> its gradient, to be changed in place, or None if it has none."""
ValueOf = Callable[[nn.Parameter], Tensor | None]
"""Parameter -> what the optimizer moves, to be changed in place: itself or its float32 master; None if it has moved
neither."""
RateOf = Callable[[nn.Parameter], float]
"""Parameter -> the learning rate of the optimizer's next step."""

gradient_of: GradientOf = attrgetter("grad")


def own_rate(_: nn.Parameter) -> float:
    """A learning rate of one, where no optimizer steps."""
    return 1.0


def whole_value(parameter: nn.Parameter) -> Tensor | None:
    """The parameter's own value; None for one in 16 bits, whose value is its float32 master."""
    return None if parameter.dtype in (torch.bfloat16, torch.float16) else parameter.detach()


class Projector(ABC):
    """Takes out of a step what would harm a pretrained model.

    One step calls, in this order: `prepare`, `project_` and `remember`; the optimizer's own step; and `hold_`, in one
    step of `every`. A projector acts in `project_`, on the gradient, or in `hold_`, on the weights, where neither the
    optimizer's momentum nor its preconditioner nor weight decay can bring back what was taken out.

    Attributes:
        every: in which of the optimizer's steps `hold_` is called: one in so many.
    """

    every: int = 1

    @property
    @abstractmethod
    def protected(self) -> list[nn.Parameter]:
        """Every parameter whose step it may change."""

    @abstractmethod
    def prepare(self, rate: RateOf = own_rate) -> None:
        """Get ready; called before anything moves.

        Args:
            rate: of the step that comes.

        Raises:
            RuntimeError: the step would be unprotected.
        """

    def project_(self, gradient: GradientOf = gradient_of) -> None:
        """Change the gradients of the protected parameters in place, before the optimizer sees them."""
        return

    def remember(self, value: ValueOf = whole_value) -> None:
        """Take in where the protected parameters are before the step."""
        return

    def hold_(self, value: ValueOf = whole_value) -> None:
        """Put what must stay of the protected parameters back where it was."""
        return

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Figures for a training log; the keys never change."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what belongs to the step that has just been made."""
