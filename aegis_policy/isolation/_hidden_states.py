"""The hidden states that layers give out in one forward pass, kept on their way.

Shape suffixes: B batch, T tokens, D hidden dimension.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class HiddenStates:
    """Outputs of layers from the passes that run inside `collect`, until `take` hands them on.

    Args:
        layers: modules that return their hidden states (B, T, D), or a tuple that starts with them.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self._layers = list(layers)
        self._kept: dict[int, Tensor] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep what every layer that runs inside the block returns; what was kept before is forgotten.

        Raises:
            RuntimeError: a layer runs a second time.
        """
        self._kept = {}
        hooks = [
            layer.register_forward_hook(partial(self._keep_output, index))
            for index, layer in enumerate(self._layers)
        ]
        try:
            yield
        except BaseException:
            self._kept = {}
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def take(self) -> list[Tensor]:
        """The hidden states (B, T, D) of all layers in order, which are then kept no longer.

        Raises:
            RuntimeError: no or not all layers ran.
        """
        kept, self._kept = self._kept, {}
        if not kept:
            raise RuntimeError(
                "No hidden states were collected: run the forward pass inside collect(mask) first."
            )
        if missing := [index for index in range(len(self._layers)) if index not in kept]:
            raise RuntimeError(
                f"Layers {missing} did not run inside collect(), so they would be unprotected: run all of them there, "
                "or name only those that run."
            )
        return [kept[index] for index in range(len(self._layers))]

    def _keep_output(self, index: int, layer: nn.Module, args: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a checkpointed layer is being recomputed during a backward pass
        if index in self._kept:
            raise RuntimeError(
                f"Layer {index} ran twice inside one collect() block: use one block for each forward."
            )
        self._kept[index] = output[0] if isinstance(output, tuple) else output
