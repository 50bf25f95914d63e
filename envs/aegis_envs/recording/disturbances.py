"""Shoves that push an expert off its path while it demonstrates, so that the way back is recorded too."""

import numpy as np
from numpy.typing import NDArray

SHOVE_CHANCE = 0.08
SHOVE_STEPS = 3
"""A shove pushes the arm one way for this many steps; between shoves the expert is undisturbed."""


class Shoves:
    """The shoves of one episode, `strength` 0 (none) to 1 (the largest action)."""

    def __init__(self, strength: float, rng: np.random.Generator) -> None:
        self._strength, self._rng = strength, rng
        self._shove: NDArray[np.float64] = np.zeros(3)
        self._left = 0

    def next(self) -> NDArray[np.float64]:
        """What to add to the xyz part of this step's action, (3,)."""
        self._left -= 1
        if self._left < 0:
            self._shove = np.zeros(3)
            if self._rng.random() < SHOVE_CHANCE:
                self._shove = self._strength * self._rng.uniform(-1.0, 1.0, 3)
                self._left = SHOVE_STEPS - 1
        return self._shove
