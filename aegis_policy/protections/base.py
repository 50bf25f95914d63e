"""What every protection can do; the base class does nothing.

Shapes: B batch, T prefix tokens, D hidden size, L decoder layers.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, Projector
from aegis_policy.protections.action_tokens import ActionChunks

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig
    from aegis_policy.vlm.backbone import Prefix, VLMBackbone


class Protection:
    """How the backbone is treated in a training step. The base class protects nothing.

    Args:
        config: of the policy.
    """

    trains_decoder: ClassVar[bool] = True
    """The decoder layers learn."""
    gradient_flows: ClassVar[bool] = True
    """The action expert's gradient enters the VLM, whether or not anything there learns."""
    needs_anchor: ClassVar[bool] = False
    """It compares with statistics of the pretrained model."""
    projects: ClassVar[bool] = False
    """It acts in the optimizer's step."""
    needs_reference: ClassVar[bool] = False
    """It compares with the pretrained weights themselves."""

    options: ClassVar[frozenset[str]] = frozenset()
    """Those of the configuration's fields that belong to protections and mean something to this one."""
    default_penalty: ClassVar[float | None] = None
    """Of a protection that adds something to the flow loss."""

    def __init__(self, config: "AegisConfig") -> None:
        self.config = config
        self.projectors: tuple[Projector, ...] = ()
        """What the optimizer has to project with, once training has begun."""

    @property
    def penalty(self) -> float:
        """The strength of what is added to the flow loss."""
        strength = self.default_penalty if self.config.penalty is None else self.config.penalty
        assert strength is not None
        return strength

    def check_anchor(self, anchor: Anchor) -> None:
        """Make sure that `anchor` holds what this protection needs.

        Raises:
            AnchorError: it does not.
        """

    def part_of(self, anchor: Anchor) -> Anchor:
        """What this protection needs of an anchor that passed `check_anchor`: a checkpoint carries no more."""
        return anchor

    def adapt(self, vlm: "VLMBackbone") -> None:
        """Change the architecture of the pretrained VLM, before a checkpoint's weights are loaded into it."""

    def set_trainable(self, vlm: "VLMBackbone") -> None:
        """Mark the VLM's parameters that may learn: at most decoder layers, vision tower and projector here."""
        vlm.requires_grad_(False)
        vlm.decoder_layers.requires_grad_(self.trains_decoder)
        vlm.vision_tower.requires_grad_(self.config.train_vision_tower)
        vlm.projector.requires_grad_(self.config.train_projector)

    def begin_training(
        self, vlm: "VLMBackbone", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        """Called once, before the first step: weights are loaded and on their device.

        Args:
            vlm: what is to be protected.
            anchor: if `needs_anchor`.
            reference: the pretrained weights by parameter name in `vlm.model`, if `needs_reference`.
        """

    def undecayed(self, vlm: "VLMBackbone") -> list[nn.Parameter]:
        """Matrices of the VLM that learn without weight decay, besides its vectors."""
        return []

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> "Prefix":
        """The prefix as the action expert may see it in a training step, which is about these actions."""
        return vlm.encode(inputs)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must keep besides weights and anchor, so that training goes on as if never stopped.

        Once training has begun these are the tensors in use: to restore them is to copy into them.
        """
        return {}

    def diagnose(self, vqa_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Called when the probe asks, between `end_forward` and the task's backward pass.

        Args:
            vqa_loss: the loss of the probe's questions with the current weights, differentiable.

        Returns:
            Figures to log until the next time; the keys never change.
        """
        return {}

    def penalty_loss(self) -> tuple[Tensor, dict[str, float]] | None:
        """Called once the flow loss is known: what is added to it, and figures to log, alike on all ranks."""
        return None

    def end_forward(self) -> dict[str, float]:
        """Called once the flow loss is known, its graph alive; returns figures to log, alike on all ranks."""
        return {}
