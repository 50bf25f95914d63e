"""AEGIS: projection against a static anchor of the pretrained activations."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from aegis_policy.errors import AegisError
from aegis_policy.isolation import (
    Anchor,
    AnchorError,
    GradientIsolator,
    LowRankProjector,
    Projector,
    select_blocks,
)
from aegis_policy.protections.base import Protection

if TYPE_CHECKING:
    from aegis_policy.vlm import Prefix, VLMBackbone


class Aegis(Protection):
    """What the pretrained activations were like stays as it was: see `aegis_policy.isolation` for each anchor.

    The Gaussian anchor takes its gradient in `end_forward`, on the graph of the same forward pass (arXiv 2604.16067);
    all projecting happens in the optimizer's step. With the anchors that block parts of linear layers' weights
    nothing but those weights learns: no anchor guards norms, biases and embeddings.
    """

    needs_anchor = True
    projects = True
    _isolator: GradientIsolator | None = None

    def check_anchor(self, anchor: Anchor) -> None:
        kinds = self.config.anchor_kinds
        held = {"gaussian"} if "all" in anchor.gaussians else set()
        if anchor.factors:
            held.add("subspace")
            if all(factors.outputs is not None for factors in anchor.factors.values()):
                held.add("kronecker")
        if kinds - held:
            raise AnchorError(
                f"The anchor does not hold what --policy.anchor={self.config.anchor} needs: "
                f"rebuild it with aegis-anchor --kinds=[{','.join(sorted(kinds))}]."
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
        projectors: list[Projector] = []
        for kind in sorted(self.config.anchor_kinds):
            if kind == "gaussian":
                self._isolator = self._gaussian(vlm, anchor)
                projectors.append(self._isolator)
            else:
                projectors.append(self._low_rank(vlm, anchor, kind))
        self.projectors = tuple(projectors)

    def encode(self, vlm: "VLMBackbone", inputs: dict[str, Tensor]) -> "Prefix":
        if self._isolator is None:
            return vlm.encode(inputs)
        with self._isolator.collect(inputs["attention_mask"].bool()):
            return vlm.encode(inputs)

    def end_forward(self) -> dict[str, float]:
        if self._isolator is not None:
            self._isolator.accumulate()
        figures: dict[str, float] = {}
        for kind, projector in zip(sorted(self.config.anchor_kinds), self.projectors, strict=True):
            for name, value in projector.metrics().items():
                figures[f"{kind}_{name}" if name in figures else name] = value
        return figures

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
            anchor.gaussians["all"],
            [list(part.parameters()) for part in (*layers, *further)],
            acts_on=self.config.project or "gradient",
            granularity=self.config.granularity or "layer",
            whiten=self.config.anchor_whiten,
            refresh_every=self.config.anchor_refresh,
            restoring=self.config.anchor_restoring,
        )

    def _low_rank(self, vlm: "VLMBackbone", anchor: Anchor, kind: str) -> LowRankProjector:
        config = self.config
        layers = {name: layer for name, layer in vlm.linear_layers.items() if layer.weight.requires_grad}
        if missing := sorted(layers.keys() - anchor.factors.keys()):
            raise AegisError(
                f"The anchor says nothing about {missing[0]} and {len(missing) - 1} more layers that would learn "
                f"unprotected: rebuild it with aegis-anchor --vlm={config.vlm}."
            )
        granularity = config.granularity or ("all" if kind == "kronecker" else "tensor")
        try:
            blocks = select_blocks(
                anchor.factors,
                _groups(layers, granularity),
                config.anchor_energy,
                use_outputs=kind == "kronecker",
                soft=config.anchor_soft,
            )
            return LowRankProjector(layers, blocks, config.project or "update")
        except ValueError as error:
            raise AegisError(
                f"--policy.anchor_energy={config.anchor_energy} with --policy.anchor={kind}: {error}"
            ) from error


def _groups(names: Iterable[str], granularity: str) -> list[list[str]]:
    """Names of linear layers that share a threshold: each alone, those of a transformer layer, or all."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*\blayers\.\d+\b", name)
        key = {"tensor": name, "layer": layer.group() if layer else name, "all": ""}[granularity]
        groups.setdefault(key, []).append(name)
    return list(groups.values())
