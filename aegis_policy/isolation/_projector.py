"""What the optimizer asks of everything that bends a step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import attrgetter

from torch import Tensor, nn

PLACES = ("gradient", "update")
"""Where a projector may act on a step."""

Descent = Callable[[nn.Parameter], Tensor | None]
"""Where a step goes downhill along: a tensor like the parameter, to be changed in place, or None if it stays."""

gradient_of: Descent = attrgetter("grad")


class Projector(ABC):
    """Takes out of a step what would harm a pretrained model.

    Attributes:
        acts_on: `gradient`, before the optimizer sees it, or `update`, the change that the optimizer then makes to the
            weights, so that neither its momentum nor its preconditioner nor weight decay can bring back
            what was taken out.
    """

    acts_on: str = "gradient"

    @property
    @abstractmethod
    def protected(self) -> list[nn.Parameter]:
        """Every parameter whose step it may change."""

    @abstractmethod
    def prepare(self) -> None:
        """Get ready to project; called before the optimizer moves anything.

        Raises:
            RuntimeError: the step cannot be projected.
        """

    @abstractmethod
    def project_(self, descent: Descent = gradient_of) -> None:
        """Change `descent(parameter)` of the protected parameters in place."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """Figures of the last step for a training log; the keys never change."""

    @abstractmethod
    def clear(self) -> None:
        """Forget what belongs to the step that has just been made."""


def one_of(name: str, value: str, choices: Sequence[str]) -> str:
    """Return `value` if it is one of the `choices`.

    Raises:
        ValueError: it is not.
    """
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: choose one of {', '.join(choices)}.")
    return value
