"""The protections that need nothing: none at all, a constant backbone, a cut gradient."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.base import Protection, Step

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone


class NoProtection(Protection):
    """The flow loss trains the decoder layers freely."""

    of_weights = True
    by_rows = True


class Freeze(Protection):
    """The decoder layers are constants; gradients still pass through them to a tower or projector."""

    trains_decoder = False
    of_weights = True
    by_rows = True


class StopGradient(Protection):
    """The action expert reads the backbone and sends nothing back."""

    trains_decoder = False
    gradient_flows = False
    by_rows = True

    def begin_step(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> Step:
        with torch.no_grad():
            return Step(vlm.encode(inputs))
