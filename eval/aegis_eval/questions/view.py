"""What questions are made of: a scene as the front image shows it, and the `Question` itself. Torch-free."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from aegis_envs.tabletop.scene import Bowl, Scene, SceneObject, Zone

Item = SceneObject | Zone | Bowl
Place = Callable[[Item], tuple[float, float]]
"""Where an item is in the front image: (u, v) in [0, 1], u to the right and v downwards."""

CLEAR = 0.07
"""Least distance along an image axis, as a fraction of the image, for a relation to be asked about."""


@dataclass(frozen=True)
class Question:
    """Words about a scene with their short lower-case answer; `type` is one of `templated.MAKERS`."""

    text: str
    answer: str
    type: str


class View:
    """A scene with the image position of every object: `uv` is (N, 2), v growing towards the camera."""

    def __init__(self, scene: Scene, place: Place) -> None:
        self.scene = scene
        self.place = place
        self.objects = scene.objects
        self.uv = np.array([place(thing) for thing in scene.objects], dtype=float).reshape(-1, 2)

    def with_color(self, color: str) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.color == color]

    def with_shape(self, shape: str) -> list[SceneObject]:
        return [thing for thing in self.objects if thing.shape == shape]

    def offset(self, axis: str, index: int, other: int) -> float:
        """How far object `index` lies beyond `other` along the image axis, right or down being positive."""
        column = "uv".index(axis)
        return float(self.uv[index, column] - self.uv[other, column])


Maker = Callable[[View, np.random.Generator], Question | None]
"""Draws a question of one type about a scene, or None where it cannot be asked."""


def with_article(name: str) -> str:
    """ "a cube", "an orange cube"."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def choose[T](rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]
