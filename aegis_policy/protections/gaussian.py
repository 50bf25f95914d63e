"""The Gaussian anchor under `aegis`: the moments of every decoder layer's output (arXiv 2604.16067)."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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

_NOISE_STEPS = 20
_NOISE_RATIO = 2.0
"""How far above the noise the mean distance of so many steps should be."""
_TOKENS = {"together": ("all",), "apart": ("image", "text")}
"""`--policy.anchor_tokens` -> the groups of tokens that have an anchor each."""


@dataclass
class GaussianOptions:
    """Options of the Gaussian anchor.

    Attributes:
        anchor_tokens: `together` for one distance of all tokens, `apart` for one of the images' and one of the text's,
            which add up.
        anchor_whiten: divide each dimension's distance by the anchor's variance there.
        anchor_momentum: compare with a moving average of the batches' moments instead of the last batch's.
        anchor_refresh: take the anchor gradient in one of so many steps.
        anchor_restoring: add so much of the anchor gradient to the projected one.
    """

    anchor_tokens: str = "together"
    anchor_whiten: bool = False
    anchor_momentum: float = 0.0
    anchor_refresh: int = 1
    anchor_restoring: float = 0.0


class Gaussian(AnchorKind):
    """One direction a layer: up the distance of the batch's moments to the anchor's.

    Its gradient is taken when the flow loss is known, on the graph of the same forward pass. A tower or projector that
    trains is projected against the same distance as the decoder layers.
    """

    name = "gaussian"
    Options = GaussianOptions
    defaults: ClassVar[Mapping[str, Any]] = {"project": "gradient", "granularity": "layer"}
    projector: GradientIsolator

    def check_options(self) -> None:
        config = self.config
        if config.anchor_tokens not in _TOKENS:
            raise AegisError(
                f"--policy.anchor_tokens={config.anchor_tokens} is unknown: choose {', '.join(_TOKENS)}."
            )
        if config.anchor_refresh < 1 or config.anchor_restoring < 0 or not 0 <= config.anchor_momentum < 1:
            raise AegisError(
                f"--policy.anchor_refresh={config.anchor_refresh} must be at least 1, "
                f"--policy.anchor_restoring={config.anchor_restoring} not negative, "
                f"--policy.anchor_momentum={config.anchor_momentum} at least 0 and less than 1."
            )
        if config.anchor_restoring and self.option("project") == "update":
            raise AegisError(
                "--policy.anchor_restoring adds to the gradient, so --policy.project must stay gradient."
            )

    def held_by(self, anchor: Anchor) -> bool:
        return anchor.gaussians.keys() >= set(self._token_groups)

    def check_anchor(self, anchor: Anchor, vlm: "VLMBackbone") -> None:
        """Moments are of decoder layers' outputs, whose number and width `Anchor.check` compares."""

    @property
    def part(self) -> dict[str, Any]:
        return {"gaussians": self._token_groups}

    def guarded(self, vlm: "VLMBackbone") -> Iterator[nn.Parameter]:
        return vlm.parameters()

    def begin_training(self, vlm: "VLMBackbone", anchor: Anchor) -> None:
        layers = list(vlm.decoder_layers)
        further = [
            part
            for part in (vlm.vision_tower, vlm.projector)
            if any(p.requires_grad for p in part.parameters())
        ]
        self.projector = GradientIsolator(
            layers,
            [anchor.gaussians[name] for name in self._token_groups],
            [list(part.parameters()) for part in (*layers, *further)],
            acts_on=self.option("project"),
            granularity=self.option("granularity"),
            whiten=self.config.anchor_whiten,
            momentum=self.config.anchor_momentum,
            refresh_every=self.config.anchor_refresh,
            restoring=self.config.anchor_restoring,
        )
        self._noise_warning = NoiseWarning()

    @contextmanager
    def watch(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> Iterator[Callable[[], Figures]]:
        _refuse_float16(vlm.device.type)
        mask_BT = inputs["attention_mask"].bool()
        is_image_BT = vlm.image_tokens(inputs)
        groups = {"all": mask_BT, "image": mask_BT & is_image_BT, "text": mask_BT & ~is_image_BT}
        with self.projector.collect(*(groups[name] for name in self._token_groups)):
            yield partial(self._accumulate, samples=len(mask_BT) * ranks.count())

    def diagnose(self, gradient: Gradient) -> Figures:
        return {"vqa_cosine": float(ranks.mean(self.projector.cosine(gradient)))}

    def state(self) -> dict[str, Tensor]:
        return self.projector.averages()

    @property
    def _token_groups(self) -> tuple[str, ...]:
        return _TOKENS[self.config.anchor_tokens]

    def _accumulate(self, samples: int) -> Figures:
        """Take the anchor gradient of a global batch of `samples`."""
        distance = self.projector.accumulate()
        floor = self.projector.noise_floor(samples)
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
                "anchor's own samples has by chance, so its gradient is mostly noise: take a larger --batch_size, "
                "--policy.anchor_momentum=0.9, or another --policy.anchor."
            )


def _refuse_float16(device: str) -> None:
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        raise AegisError(
            "The anchor gradient is not scaled as the loss is, so float16 would round it to nothing: train the "
            "gaussian anchor in bfloat16 (--policy.dtype=bfloat16) or float32, or take another --policy.anchor."
        )
