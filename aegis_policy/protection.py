"""The protections: what each lets the flow loss do to the backbone.

One small class a protection, found by its name in `PROTECTIONS`. They all share the rule of what may learn:
the backbone's decoder layers where the protection trains them, the vision tower and the projector where the
user asks for it, nothing else of the VLM.

Shapes: B batch, T prefix tokens, D hidden size, L decoder layers.
"""

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from aegis_policy.errors import AegisError
from aegis_policy.isolation import GaussianAnchor, GradientIsolator

if TYPE_CHECKING:
    from aegis_policy.vlm import Prefix, VLMBackbone


class Protection:
    """How the backbone is treated in a training step. The base class protects nothing."""

    trains_decoder: ClassVar[bool] = True
    """The decoder layers learn."""
    gradient_flows: ClassVar[bool] = True
    """The action expert's gradient enters the VLM, whether or not anything there learns."""
    needs_anchor: ClassVar[bool] = False
    """It compares with statistics of the pretrained model."""

    isolator: GradientIsolator | None = None
    """What the optimizer has to project with, once training has begun."""

    def begin_training(self, vlm: "VLMBackbone", anchor: GaussianAnchor | None) -> None:
        """Called once, when the optimizer asks for the parameters: weights are loaded and on their device."""

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> "Prefix":
        """The prefix as the action expert may see it in a training step."""
        return vlm.encode(inputs)

    def end_forward(self) -> dict[str, float]:
        """Called once the flow loss is known, its graph alive; returns figures to log, alike on all ranks."""
        return {}


class NoProtection(Protection):
    """The flow loss trains the decoder layers freely."""


class Freeze(Protection):
    """The decoder layers are constants; gradients still pass through them to a tower or projector."""

    trains_decoder = False


class StopGradient(Protection):
    """The action expert reads the backbone and sends nothing back."""

    trains_decoder = False
    gradient_flows = False

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> "Prefix":
        with torch.no_grad():
            return vlm.encode(inputs)


class Aegis(Protection):
    """Layer-wise projection of the task gradient against that of the anchor distance (arXiv 2604.16067).

    `end_forward` takes the anchor gradient on the graph of the same forward pass; the projection itself
    happens in the optimizer's step (`aegis_policy.isolation.ProjectedAdamW`), once the task gradient is
    there.
    """

    needs_anchor = True

    def begin_training(self, vlm: "VLMBackbone", anchor: GaussianAnchor | None) -> None:
        assert anchor is not None
        self.isolator = GradientIsolator(list(vlm.decoder_layers), anchor)

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> "Prefix":
        assert self.isolator is not None
        with self.isolator.collect(inputs["attention_mask"].bool()):
            return vlm.encode(inputs)

    def end_forward(self) -> dict[str, float]:
        assert self.isolator is not None
        self.isolator.accumulate()
        return self.isolator.metrics()


PROTECTIONS: dict[str, type[Protection]] = {
    "none": NoProtection,
    "freeze": Freeze,
    "stop_gradient": StopGradient,
    "aegis": Aegis,
}
"""`--policy.protection` -> what it does."""


def protection_named(name: str) -> type[Protection]:
    """Look a protection up.

    Raises:
        AegisError: there is none of that name.
    """
    if name not in PROTECTIONS:
        raise AegisError(f"--policy.protection={name} is unknown: choose one of {', '.join(PROTECTIONS)}.")
    return PROTECTIONS[name]


def set_trainable(
    vlm: "VLMBackbone", protection: type[Protection], train_vision_tower: bool, train_projector: bool
) -> None:
    """Mark the VLM's parameters that may learn. Token embeddings, final norm and head never do."""
    vlm.requires_grad_(False)
    vlm.decoder_layers.requires_grad_(protection.trains_decoder)
    vlm.vision_tower.requires_grad_(train_vision_tower)
    vlm.projector.requires_grad_(train_projector)
