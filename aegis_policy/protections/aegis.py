"""AEGIS: projection against a static anchor of the pretrained activations."""

import logging
import math
from collections import deque
from collections.abc import Callable
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aegis_policy.isolation import (
    Anchor,
    AnchorError,
    GradientIsolator,
    LowRankProjector,
    Projector,
)
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.base import Protection
from aegis_policy.protections.blocks import DEFAULT_ENERGY, block_layers
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import Prefix, VLMBackbone

_NOISE_STEPS = 20
_NOISE_RATIO = 2.0
"""How far above the noise the mean distance of so many steps should be."""


class Aegis(Protection):
    """What the pretrained activations were like stays as it was: see `aegis_policy.isolation` for each anchor.

    The Gaussian anchor takes its gradient in `end_forward`, on the graph of the same forward pass (arXiv 2604.16067);
    all projecting happens in the optimizer's step. With the anchors that block parts of linear layers' weights
    nothing but those weights learns: no anchor guards norms, biases and embeddings.
    """

    needs_anchor = True
    projects = True
    options = frozenset(
        {
            "anchor",
            "anchor_energy",
            "anchor_soft",
            "anchor_tokens",
            "anchor_whiten",
            "anchor_momentum",
            "anchor_refresh",
            "anchor_restoring",
            "anchor_path",
            "project",
            "granularity",
        }
    )
    _isolator: GradientIsolator | None = None

    def check_anchor(self, anchor: Anchor) -> None:
        kinds = self.config.anchor_kinds
        held = {"gaussian"} if anchor.gaussians.keys() >= set(self._token_groups) else set()
        if anchor.factors:
            held.add("subspace")
            if all(factors.outputs is not None for factors in anchor.factors.values()):
                held.add("kronecker")
        if kinds - held:
            raise AnchorError(
                f"The anchor does not hold what --policy.anchor={self.config.anchor} needs",
                f"rebuild it with aegis-anchor --kinds=[{','.join(sorted(kinds))}] and name it with "
                "--policy.anchor_path",
            )

    def part_of(self, anchor: Anchor) -> Anchor:
        kinds = self.config.anchor_kinds
        return anchor.part(
            gaussians=self._token_groups if "gaussian" in kinds else (),
            inputs=kinds != {"gaussian"},
            outputs="kronecker" in kinds,
        )

    def set_trainable(self, vlm: "VLMBackbone") -> None:
        super().set_trainable(vlm)
        if self.config.anchor_kinds == {"gaussian"}:
            return
        guarded = {id(layer.weight) for layer in vlm.linear_layers.values()}
        for parameter in vlm.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in guarded)

    def begin_training(
        self, vlm: "VLMBackbone", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        assert anchor is not None
        self._distances: deque[float] = deque(maxlen=_NOISE_STEPS)
        self._warned = False
        projectors: list[Projector] = []
        for kind in sorted(self.config.anchor_kinds):
            if kind == "gaussian":
                self._isolator = self._gaussian(vlm, anchor)
                projectors.append(self._isolator)
            else:
                projectors.append(self._low_rank(vlm, anchor, kind))
        self.projectors = tuple(projectors)

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> "Prefix":
        if self._isolator is None:
            return vlm.encode(inputs)
        if (
            torch.is_autocast_enabled(vlm.device.type)
            and torch.get_autocast_dtype(vlm.device.type) == torch.float16
        ):
            raise AegisError(
                "The anchor gradient is not scaled as the loss is, so float16 would round it to nothing: train the "
                "gaussian anchor in bfloat16 (--policy.dtype=bfloat16) or float32, or take another --policy.anchor."
            )
        mask = inputs["attention_mask"].bool()
        is_image = vlm.image_tokens(inputs)
        groups = {"all": mask, "image": mask & is_image, "text": mask & ~is_image}
        self._samples = len(mask) * ranks.count()
        with self._isolator.collect(*(groups[name] for name in self._token_groups)):
            return vlm.encode(inputs)

    def end_forward(self) -> dict[str, float]:
        figures: dict[str, float] = {}
        if self._isolator is not None:
            distance = self._isolator.accumulate()
            floor = self._isolator.noise_floor(self._samples)
            if floor is not None:
                figures["anchor_noise_floor"] = floor
                self._warn_of_noise(distance, floor)
        for kind, projector in zip(sorted(self.config.anchor_kinds), self.projectors, strict=True):
            for name, value in projector.metrics().items():
                figures[f"{kind}_{name}" if name in figures else name] = value
        return figures

    def state(self) -> dict[str, Tensor]:
        return {} if self._isolator is None else self._isolator.averages()

    def diagnose(self, vqa_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Where the questions' own gradient lies: along the anchor gradient, inside the blocks."""
        parameters = list({id(p): p for each in self.projectors for p in each.protected}.values())
        with torch.enable_grad():
            gradients = torch.autograd.grad(vqa_loss(), parameters, allow_unused=True)
        gradient_of = {id(p): gradient for p, gradient in zip(parameters, gradients, strict=True)}
        figures: dict[str, float] = {}
        for kind, projector in zip(sorted(self.config.anchor_kinds), self.projectors, strict=True):
            if isinstance(projector, GradientIsolator):
                cosine = projector.cosine(lambda p: gradient_of[id(p)])
                figures["anchor_vqa_cosine"] = float(ranks.mean(cosine))
            elif isinstance(projector, LowRankProjector):
                name = "vqa_gradient_blocked"
                share = projector.blocked_share(lambda p: gradient_of[id(p)])
                figures[f"{kind}_{name}" if name in figures else name] = float(share)
        return figures

    def _warn_of_noise(self, distance: float, floor: float) -> None:
        """Once a training: a distance that is noise has a gradient that points anywhere."""
        self._distances.append(distance / floor if floor else math.inf)
        noisy = len(self._distances) == _NOISE_STEPS and mean(self._distances) < _NOISE_RATIO
        if noisy and not self._warned:
            self._warned = True
            logging.warning(
                f"The anchor distance is {mean(self._distances):.1f} times what a batch of {self._samples} of the "
                "anchor's own samples has by chance, so its gradient is mostly noise: take a larger --batch_size, "
                "--policy.anchor_momentum=0.9, or another --policy.anchor."
            )

    @property
    def _token_groups(self) -> tuple[str, ...]:
        return ("all",) if self.config.anchor_tokens == "together" else ("image", "text")

    def _gaussian(self, vlm: "VLMBackbone", anchor: Anchor) -> GradientIsolator:
        """The decoder layers; a tower or projector that trains is projected against the same distance."""
        layers = list(vlm.decoder_layers)
        further = [
            part
            for part in (vlm.vision_tower, vlm.projector)
            if any(p.requires_grad for p in part.parameters())
        ]
        return GradientIsolator(
            layers,
            [anchor.gaussians[name] for name in self._token_groups],
            [list(part.parameters()) for part in (*layers, *further)],
            acts_on=self.config.project or "gradient",
            granularity=self.config.granularity or "layer",
            whiten=self.config.anchor_whiten,
            momentum=self.config.anchor_momentum,
            refresh_every=self.config.anchor_refresh,
            restoring=self.config.anchor_restoring,
        )

    def _low_rank(self, vlm: "VLMBackbone", anchor: Anchor, kind: str) -> LowRankProjector:
        return block_layers(
            {name: layer for name, layer in vlm.linear_layers.items() if layer.weight.requires_grad},
            anchor,
            kind,
            energy=DEFAULT_ENERGY[kind] if self.config.anchor_energy is None else self.config.anchor_energy,
            soft=self.config.anchor_soft,
            granularity=self.config.granularity,
            acts_on=self.config.project,
        )
