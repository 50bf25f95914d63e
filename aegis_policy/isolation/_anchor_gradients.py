"""The anchor gradients of one optimizer step: added up over micro-batches, then over ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from aegis_policy.isolation._moments import all_reduce_sum_, at_least_float32, is_distributed


class AnchorGradients:
    """One float32 vector for each layer, seen as the layer's parameters.

    A layer is one vector so that ranks exchange it in one collective; the vectors exist only from the step's
    first gradient to `clear()`.

    Args:
        parameters: by layer; a layer may have none.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._flat: list[Tensor] = []
        self._views: list[list[Tensor]] = []
        self.reduced = False
        """They have been summed over ranks, and `reduce()` will return them as they are."""

    def add(self, grads: Sequence[Tensor | None]) -> None:
        """Add one gradient for each parameter of all layers in turn; None for a parameter without one.

        Raises:
            RuntimeError: a layer with parameters has no gradient at all.
        """
        remaining = iter(grads)
        for index, parameters in enumerate(self._parameters):
            layer = [next(remaining) for _ in parameters]
            if layer and all(grad is None for grad in layer):
                raise RuntimeError(
                    f"The anchor's gradient reached no parameter of layer {index}: it would be unprotected; "
                    "checkpointed layers need use_reentrant=False."
                )
        totals = [total for layer in self._views or self._allocate() for total in layer]
        reached = [(total, grad) for total, grad in zip(totals, grads, strict=True) if grad is not None]
        torch._foreach_add_([total for total, _ in reached], [grad for _, grad in reached])

    def accumulated(self) -> list[list[Tensor]]:
        """This rank's own gradients by layer and parameter; zeros before anything was added."""
        return self._views or [[torch.zeros_like(p) for p in layer] for layer in self._parameters]

    def reduce(self) -> list[list[Tensor]]:
        """Sum over ranks; a rank that added nothing contributes zeros, so that collectives stay aligned.

        Returns:
            The gradients by layer and parameter, float32 or better.

        Raises:
            RuntimeError: no rank added anything since the last `clear()`.
        """
        if self.reduced:
            return self._views
        added = bool(self._views)
        views = self._views or self._allocate()
        if is_distributed():
            for flat in self._flat:
                all_reduce_sum_(flat)
            ranks = self._flat[0].new_full((), float(added))
            all_reduce_sum_(ranks)
            added = added or ranks.item() > 0  # only a rank that added nothing waits for the answer
        if not added:
            self.clear()
            raise RuntimeError(
                "The step has no anchor gradient, so it would be unprotected: call accumulate() in each step."
            )
        self.reduced = True
        return views

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._flat, self._views, self.reduced = [], [], False

    def _allocate(self) -> list[list[Tensor]]:
        for parameters in self._parameters:
            sizes = [p.numel() for p in parameters]
            if not sizes:
                self._views.append([])
                continue
            flat = at_least_float32(parameters[0].detach()).new_zeros(sum(sizes))
            self._flat.append(flat)
            pieces = flat.split(sizes)
            self._views.append([piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)])
        return self._views
