"""What every protection can do, and what a training step under it goes through; the base classes do nothing.

Shapes: B batch, T prefix tokens, D hidden size, L decoder layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, Projector
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.coverage import Coverage
from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts
    from aegis_policy.vlm.prefix import Prefix


@dataclass
class NoOptions:
    """No flag means anything to the protection."""


@dataclass
class PenaltyOptions:
    """Options of protections that add something to the flow loss, or draw weights back.

    Attributes:
        penalty: the strength of that; left open, the protection's own default.
    """

    penalty: float | None = None


@dataclass
class AnchorOptions:
    """Options of protections that compare with an anchor.

    Attributes:
        anchor_path: the anchor that `aegis-anchor` wrote for the VLM; the embedded VLM brings its own. It is read once,
            at the start: a checkpoint carries the anchor, and a path given here replaces it.
    """

    anchor_path: Path | None = None


class Penalty(NamedTuple):
    """What is added to the flow loss, a scalar, and figures to log, alike on all ranks."""

    loss: Tensor
    figures: dict[str, float]


@dataclass(frozen=True)
class Step:
    """One training step, once its prefix is encoded; this one adds nothing.

    When the flow loss is known, `finish` is called and then `penalty`, once each.

    Attributes:
        prefix: as the action expert may see it.
    """

    prefix: "Prefix"

    def finish(self) -> dict[str, float]:
        """Do what needs the graph of the forward pass; returns figures to log, alike on all ranks."""
        return {}

    def penalty(self) -> Penalty | None:
        """What is added to the flow loss, if anything is."""
        return None


@dataclass(frozen=True)
class ReportedStep(Step):
    """A step that adds nothing.

    Attributes:
        figures: returns what is to be logged of it.
    """

    figures: Callable[[], dict[str, float]]

    def finish(self) -> dict[str, float]:
        return self.figures()


@dataclass(frozen=True)
class PenalizedStep(Step):
    """A step that adds something to the flow loss.

    Attributes:
        compute: returns it.
    """

    compute: Callable[[], Penalty]

    def penalty(self) -> Penalty:
        return self.compute()


class Protection:
    """How the backbone is treated in training. The base class protects nothing.

    What lasts for one step belongs to the `Step`; here is what lasts for the training.

    Args:
        config: of the policy.
    """

    Options: ClassVar[type] = NoOptions
    """A dataclass of fields that mean something to this protection, which a policy's configuration inherits."""
    chosen_by: ClassVar[tuple[str, ...]] = ("protection",)
    """The fields that decide what `defaults` are."""
    default_penalty: ClassVar[float | None] = None
    """Strength of what it adds to the flow loss, or of how it draws weights back; None where it does neither."""

    trains_decoder: ClassVar[bool] = True
    """The decoder layers learn."""
    gradient_flows: ClassVar[bool] = True
    """The action expert's gradient enters the VLM, whether or not anything there learns."""
    needs_anchor: bool = False
    """It compares with statistics of the pretrained model."""
    projects: bool = False
    """It acts in the optimizer's step."""
    of_weights: bool = False
    """It asks for nothing but the weights: neither for hidden states nor for answers."""
    by_rows: bool = False
    """It does the same to a weight whose rows lie on several devices, as FSDP2 keeps them."""
    needs_reference: ClassVar[bool] = False
    """It compares with the pretrained weights themselves."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.projectors: tuple[Projector, ...] = ()
        """What the optimizer has to project with, once training has begun."""

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """The fields of `Options`."""
        return frozenset(field.name for field in fields(cls.Options))

    def defaults(self) -> dict[str, Any]:
        """What this protection takes for options that were left open (None), by name."""
        return {} if self.default_penalty is None else {"penalty": self.default_penalty}

    def idle(self) -> dict[str, str]:
        """Options of its own that change nothing as it is configured, and the flag that makes them so."""
        return {}

    def check_options(self) -> None:
        """Make sure that its options, none of them left open, are possible.

        Raises:
            AegisError: one is not.
        """
        if self.config.penalty is not None and self.config.penalty < 0:
            raise AegisError(f"--policy.penalty={self.config.penalty} must not be negative.")

    @property
    def penalty(self) -> float:
        """The strength of what is added to the flow loss, or of how weights are drawn back."""
        assert self.config.penalty is not None, "resolved by ProtectionChoice"
        return self.config.penalty

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        """Make sure that `anchor` holds what this protection needs for all that learns in `vlm`.

        Raises:
            AnchorError: it does not.
        """

    def part_of(self, anchor: Anchor) -> Anchor:
        """What this protection needs of an anchor that passed `check_anchor`: a checkpoint carries no more."""
        return anchor

    def adapt(self, vlm: "VLMParts") -> None:
        """Change the architecture of the pretrained VLM, before a checkpoint's weights are loaded into it."""

    def set_trainable(self, vlm: "VLMParts") -> None:
        """Mark the VLM's parameters that may learn: at most decoder layers, vision tower and projector here.

        Layers behind the last that a policy runs stay as they are.
        """
        vlm.model.requires_grad_(False)
        vlm.encoding_layers.requires_grad_(True)
        vlm.vision_tower.requires_grad_(self.config.train_vision_tower)
        vlm.projector.requires_grad_(self.config.train_projector)
        self.narrow(vlm)

    def narrow(self, vlm: "VLMParts") -> None:
        """Of what is marked to learn, leave what may under this protection."""
        if not self.trains_decoder:
            vlm.decoder_layers.requires_grad_(False)

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        """Called once, before the first step: weights are loaded and on their device.

        Args:
            vlm: what is to be protected.
            anchor: if `needs_anchor`.
            reference: the pretrained weights by parameter name in `vlm.model`, if `needs_reference`.
        """

    def coverages(self) -> Iterator[Coverage]:
        """How much of what learns is protected, once training has begun."""
        return iter(())

    def undecayed(self, vlm: "VLMParts") -> list[nn.Parameter]:
        """Matrices of the VLM that learn without weight decay, besides its vectors."""
        return []

    def begin_step(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> Step:
        """Encode the prefix of a training step which is about these actions."""
        return ReportedStep(vlm.encode(inputs), self.weight_figures)

    def weight_penalty(self) -> Penalty | None:
        """What is added to the task's loss for the sake of the weights, where a policy runs the VLM in its own way."""
        return None

    def weight_figures(self) -> dict[str, float]:
        """What is logged of the weights alone; the keys never change."""
        return {}

    def diagnose(self, vqa_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Called when the probe asks, between `Step.finish` and the task's backward pass.

        Args:
            vqa_loss: the loss of the probe's questions with the current weights, differentiable.

        Returns:
            Figures to log until the next time; the keys never change.
        """
        return {}
