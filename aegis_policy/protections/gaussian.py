"""The Gaussian anchor under `aegis`: the moments of every decoder layer's output (arXiv 2604.16067)."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from aegis_policy.isolation import Anchor, GradientIsolator
from aegis_policy.protections.anchor_kind import AnchorKind, Figures, Gradient
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts

_NOISE_STEPS = 20
_NOISE_RATIO = 2.0
"""How far above the noise the mean distance of so many steps should be."""
_TOKENS = "all"
"""The group of an anchor's tokens whose moments are compared."""


class Gaussian(AnchorKind):
    """One direction a layer: up the distance of the batch's moments to the anchor's.

    Its gradient is taken when the flow loss is known, on the graph of the same forward pass. A tower or projector that
    trains is projected against the same distance as the decoder layers.
    """

    name = "gaussian"
    part: ClassVar[Mapping[str, Any]] = {"gaussians": (_TOKENS,)}
    projector: GradientIsolator

    def held_by(self, anchor: Anchor) -> bool:
        return _TOKENS in anchor.gaussians

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        """Moments are of decoder layers' outputs, whose number and width `Anchor.check` compares."""

    def guarded(self, vlm: "VLMParts") -> Iterator[nn.Parameter]:
        return vlm.model.parameters()

    def begin_training(self, vlm: "VLMParts", anchor: Anchor) -> None:
        layers = list(vlm.encoding_layers)
        further = [
            part
            for part in (vlm.vision_tower, vlm.projector)
            if any(p.requires_grad for p in part.parameters())
        ]
        self.projector = GradientIsolator(
            layers,
            anchor.gaussians[_TOKENS].first(len(layers)),
            [list(part.parameters()) for part in (*layers, *further)],
        )
        self._noise_warning = NoiseWarning()

    @contextmanager
    def watch(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> Iterator[Callable[[], Figures]]:
        _refuse_float16(vlm.device.type)
        mask_BT = inputs["attention_mask"].bool()
        with self.projector.collect(mask_BT):
            yield partial(self._accumulate, samples=len(mask_BT) * ranks.count())

    def diagnose(self, gradient: Gradient) -> Figures:
        return {"vqa_cosine": float(ranks.mean(self.projector.cosine(gradient)))}

    def _accumulate(self, samples: int) -> Figures:
        """Take the anchor gradient of a global batch of `samples`."""
        distance = self.projector.accumulate()
        floor = self.projector.anchor.noise_floor(samples)
        if floor is None:
            return self.projector.metrics()
        self._noise_warning.add(distance, floor, samples)
        return {"noise_floor": floor, **self.projector.metrics()}


class NoiseWarning:
    """Says once a training that the distance to the anchor is noise: its gradient then points anywhere."""

    def __init__(self) -> None:
        self._ratios: deque[float] = deque(maxlen=_NOISE_STEPS)
        self._given = False

    def add(self, distance: float, floor: float, samples: int) -> None:
        """Take in a step's distance and that of as many of the anchor's own samples."""
        self._ratios.append(distance / floor if floor else math.inf)
        noisy = len(self._ratios) == _NOISE_STEPS and mean(self._ratios) < _NOISE_RATIO
        if noisy and not self._given:
            self._given = True
            logging.warning(
                f"The anchor distance is {mean(self._ratios):.1f} times what a batch of {samples} of the "
                "anchor's own samples has by chance, so its gradient is mostly noise: take a larger --batch_size "
                "or another --policy.anchor."
            )


def _refuse_float16(device: str) -> None:
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise AegisError(
            "The anchor gradient is not scaled as the loss is, so float16 would round it to nothing: train the "
            "gaussian anchor in bfloat16 (--policy.dtype=bfloat16) or float32, or take another --policy.anchor."
        )
