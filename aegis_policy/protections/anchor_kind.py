"""What one kind of anchor does under `aegis`: the base class of those in `gaussian` and `subspace`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, Projector
from aegis_policy.protections.base import NoOptions
from aegis_policy.protections.coverage import Coverage

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts

Figures = dict[str, float]
Gradient = Callable[[nn.Parameter], Tensor | None]
"""Protected parameter -> a gradient of it, or None where there is none."""


class AnchorKind(ABC):
    """One kind of anchor, as long as a training lasts.

    Args:
        config: of the policy.
    """

    name: ClassVar[str]
    """As `--policy.anchor` and the training log spell it."""
    Options: ClassVar[type] = NoOptions
    """A dataclass of the configuration's fields that mean something to this kind alone."""
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """What options that were left open become for this kind, by name; they are shares, above 0 and at most 1."""
    part: ClassVar[Mapping[str, Any]]
    """What it needs of an anchor, as arguments of `Anchor.part`."""
    of_weights: ClassVar[bool] = False
    """As `Protection.of_weights`."""
    by_rows: ClassVar[bool] = False
    """As `Protection.by_rows`."""
    projector: Projector
    """What it gives the optimizer, once `begin_training` has been called."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def held_by(self, anchor: Anchor) -> bool:
        """Whether an anchor holds what this kind compares with."""

    @abstractmethod
    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        """Make sure that an anchor that holds this kind is about all that learns in `vlm`.

        Raises:
            AnchorError: it is not.
        """

    @abstractmethod
    def guarded(self, vlm: "VLMParts") -> Iterable[Tensor]:
        """The parameters that may learn beside it, because it guards them or lets others be."""

    @abstractmethod
    def begin_training(self, vlm: "VLMParts", anchor: Anchor) -> None:
        """Make the projector for what learns in `vlm`.

        Raises:
            AegisError: the anchor cannot guard it as configured.
        """

    def coverages(self) -> Iterator[Coverage]:
        """As `Protection.coverages`."""
        return iter(())

    @contextmanager
    def watch(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> Iterator[Callable[[], Figures]]:
        """Be there while a training step encodes `inputs`.

        What it yields is called when the flow loss is known, and returns figures to log.
        """
        yield self.projector.metrics

    @abstractmethod
    def diagnose(self, gradient: Gradient) -> Figures:
        """How the gradient of the questions themselves lies to what this kind guards."""
