"""The first part of `aegis-pretrain`: image tokens learn to tell what lies under them.

A language model reads nothing from image tokens that all look alike, and image tokens stay alike while nothing reads
them: from random weights that deadlock lasts for thousands of steps. A throw-away linear head breaks it. Every
projected image token names the object whose centre falls into its patch (colour and shape) and the mark on the
table there (a zone's colour, or the bowl); most patches hold nothing.

Shapes: B images, P = G x G image tokens, D projected width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aegis_envs.tabletop.scene import COLORS, SHAPES
from aegis_eval.questions.images import SceneImage
from aegis_policy.vlm.backbone import VLMBackbone

_COLORS, _SHAPES = list(COLORS), list(SHAPES)
_CLASSES = {"color": len(_COLORS) + 1, "shape": len(_SHAPES) + 1, "mark": len(_COLORS) + 2}
_NOTHING_WEIGHT = 0.1


class PatchNamer(nn.Module):
    """Vision tower, projector and the throw-away head; `forward` gives the mean cross-entropy of its three namings."""

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.vision_tower, self.projector = vlm.vision_tower, vlm.projector
        self.head = nn.Linear(vlm.hidden_size, sum(_CLASSES.values()))

    def forward(self, pixel_values: Tensor, labels_BP3: Tensor) -> Tensor:
        features_BPD = self.projector(self.vision_tower(pixel_values).last_hidden_state)
        parts = self.head(features_BPD).flatten(0, 1).split(list(_CLASSES.values()), dim=-1)
        losses = []
        for logits, targets in zip(parts, labels_BP3.flatten(0, 1).unbind(-1), strict=True):
            weight = torch.ones(logits.shape[-1], device=logits.device)
            weight[0] = _NOTHING_WEIGHT
            losses.append(nn.functional.cross_entropy(logits.float(), targets, weight))
        return torch.stack(losses).mean()


def patch_labels(scenes: Sequence[SceneImage], grid: int) -> Tensor:
    """Class indices (B, P, 3) of object colour, object shape and mark for every patch; 0 is nothing."""
    labels = torch.zeros(len(scenes), grid * grid, 3, dtype=torch.long)
    for row, photo in enumerate(scenes):
        for thing in photo.scene.objects:
            patch = _patch(photo.place(thing), grid)
            labels[row, patch, 0] = 1 + _COLORS.index(thing.color)
            labels[row, patch, 1] = 1 + _SHAPES.index(thing.shape)
        for zone in photo.scene.zones:
            labels[row, _patch(photo.place(zone), grid), 2] = 1 + _COLORS.index(zone.color)
        if photo.scene.bowl is not None:
            labels[row, _patch(photo.place(photo.scene.bowl), grid), 2] = 1 + len(_COLORS)
    return labels


def _patch(place: tuple[float, float], grid: int) -> int:
    column, row = (min(max(int(part * grid), 0), grid - 1) for part in place)
    return row * grid + column
