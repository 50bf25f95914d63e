"""The hidden states that pass from the VLM to the action expert.

Shapes: B batch, T prefix tokens, D hidden size, L decoder layers.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """What the action expert reads: the output (B, T, D) of each of the L layers that `encode` ran; `mask` (B, T)."""

    hidden_states: tuple[Tensor, ...]
    mask: Tensor
