"""What the image tokens are taught to say before the language model sees any: words, in its own embeddings.

Each row of 6 image tokens is two cells of three: colour, name and place of the thing that lies there. Where two things
share a cell, one moves to the nearest free one. Half way up, each patch tells all that lies in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aegis_envs.tabletop.scene import COLORS, SHAPES
from aegis_eval.questions.images import SceneImage
from aegis_policy.vlm.backbone import VLMBackbone

_WORDS = (*COLORS, "brown", *SHAPES, "zone", "bowl")
_DIRECTIONS = (("right", "left"), ("front", "behind"))
_ROWS, _COLUMNS, _TOKENS = 6, 2, 3
"""Cells of an image, and image tokens of a cell."""
_SPAN = 3.0
"""Of a place, from one edge of the image to the other, in units of the direction from a word to its opposite."""


class SceneNaming(nn.Module):
    """Vision tower and projector; `forward` gives how far image tokens are from the words of what they show."""

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.vision_tower, self.projector = vlm.vision_tower, vlm.projector
        embedding_VD = vlm.model.get_input_embeddings().weight.detach()
        tokenizer = vlm.processor.tokenizer
        self.mean_D = embedding_VD.mean(0)

        def direction(word: str) -> Tensor:
            ids = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
            return embedding_VD[ids].mean(0) - self.mean_D

        self.said_WD = torch.stack(
            [*map(direction, _WORDS), *(direction(one) - direction(other) for one, other in _DIRECTIONS)]
        )
        self.read_DW = torch.linalg.pinv(self.said_WD)
        width = self.vision_tower.config.hidden_size
        self.half_way = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, len(self.said_WD)))

    def forward(self, pixel_values: Tensor, wanted_BPW: Tensor, lying_BPW: Tensor) -> Tensor:
        seen_BPD, hidden = _see(self.vision_tower, self.projector, pixel_values)
        rest_BPD = seen_BPD - self.mean_D
        found_BPW = rest_BPD @ self.read_DW
        unsaid_BPD = rest_BPD - found_BPW @ self.said_WD
        wrong = (found_BPW - wanted_BPW).square().sum(-1) + 0.1 * unsaid_BPD.square().sum(-1)
        off_BPW = self.half_way(hidden[len(hidden) // 2]) - lying_BPW
        off_BPW[..., len(_WORDS) :] *= (lying_BPW[..., : len(_WORDS)].sum(-1) > 0).unsqueeze(-1)
        return (wrong + off_BPW.square().sum(-1)).mean()


def see(vision_tower: nn.Module, projector: nn.Module, pixel_values: Tensor) -> Tensor:
    """Image tokens (B, 36, D) of pictures (B, 3, H, W)."""
    return _see(vision_tower, projector, pixel_values)[0]


def _see(
    vision_tower: nn.Module, projector: nn.Module, pixel_values: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    patches = torch.ones(len(pixel_values), _ROWS, _COLUMNS * _TOKENS, dtype=torch.bool)
    seen = vision_tower(pixel_values=pixel_values, patch_attention_mask=patches, output_hidden_states=True)
    return projector(seen.last_hidden_state), seen.hidden_states


def things_lying(photos: Sequence[SceneImage]) -> Tensor:
    """How much of each word and direction is true of each patch, (B, 36, W)."""
    side = _COLUMNS * _TOKENS
    lying = torch.zeros(len(photos), _ROWS, side, len(_WORDS) + len(_DIRECTIONS))
    for photo, patches in zip(photos, lying, strict=True):
        for color, name, u, v in _things(photo):
            patch = patches[min(int(v * _ROWS), _ROWS - 1), min(int(u * side), side - 1)]
            patch[_WORDS.index(color)] += 1
            patch[_WORDS.index(name)] += 1
            patch[len(_WORDS) :] = _SPAN * torch.tensor([u - 0.5, v - 0.5])
    return lying.flatten(1, 2)


def scene_words(photos: Sequence[SceneImage]) -> Tensor:
    """How much of each word and direction each image token is to say, (B, 36, W)."""
    width = len(_WORDS) + len(_DIRECTIONS)
    wanted = torch.zeros(len(photos), _ROWS, _COLUMNS, _TOKENS, width)
    for photo, cells in zip(photos, wanted, strict=True):
        free = {(row, column) for row in range(_ROWS) for column in range(_COLUMNS)}
        for color, name, u, v in _things(photo):
            row, column = min(
                free, key=lambda cell: abs(cell[0] + 0.5 - v * _ROWS) + abs(cell[1] + 0.5 - u * _COLUMNS)
            )
            free.remove((row, column))
            cells[row, column, 0, _WORDS.index(color)] = 1
            cells[row, column, 1, _WORDS.index(name)] = 1
            cells[row, column, 2, len(_WORDS) :] = _SPAN * torch.tensor([u - 0.5, v - 0.5])
    return wanted.flatten(1, 3)


def _things(photo: SceneImage) -> list[tuple[str, str, float, float]]:
    """(colour, name, u, v): what is asked about first, so that it keeps its cell."""
    scene = photo.scene
    found = [(thing.color, thing.shape, *photo.place(thing)) for thing in scene.objects]
    if scene.bowl is not None:
        found.append(("brown", "bowl", *photo.place(scene.bowl)))
    return found + [(zone.color, "zone", *photo.place(zone)) for zone in scene.zones]
