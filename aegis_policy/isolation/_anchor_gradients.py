"""The anchor gradients of one optimizer step: averaged over micro-batches, then added up over ranks."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from aegis_policy.isolation._numerics import at_least_float32
from aegis_policy.isolation._ranks import all_reduce_sum_, is_distributed


class AnchorGradients:
    """One tensor of float32 or better for each parameter; they exist only from the step's first gradient to `clear()`.

    What autograd returned is kept and not copied: at that moment the activations are alive too, and a second copy
    would be the peak of the whole step.

    Args:
        parameters: by layer; a layer may have none.
    """

    def __init__(self, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._totals: list[Tensor] = []
        self._batches = 0
        self.reduced = False
        """They have been summed over ranks, and `reduce()` will return them as they are."""

    def add(self, grads: list[Tensor | None]) -> None:
        """Add one gradient for each parameter of all layers in turn; None for a parameter without one.

        Args:
            grads: emptied on the way, so that no more than one tensor is there twice.

        Raises:
            RuntimeError: a layer with parameters has no gradient at all.
        """
        self._require_reached([grad is not None for grad in grads])
        self._batches += 1
        first = not self._totals
        for index, p in enumerate(p for layer in self._parameters for p in layer):
            grad, grads[index] = grads[index], None
            if first:
                self._totals.append(_zeros(p) if grad is None else at_least_float32(grad))
            elif grad is not None:  # out of place: autograd may have given two parameters one tensor
                self._totals[index] = self._totals[index] + grad

    def accumulated(self) -> list[list[Tensor]]:
        """This rank's own gradients by layer and parameter; zeros before anything was added."""
        return list(self._by_layer(self._totals or self._nothing()))

    def reduce(self) -> list[list[Tensor]]:
        """Sum of the ranks' means; a rank that added nothing contributes zeros, so that collectives stay aligned.

        Returns:
            The gradients by layer and parameter, float32 or better.

        Raises:
            RuntimeError: no rank added anything since the last `clear()`.
        """
        if self.reduced:
            return self.accumulated()
        added = bool(self._totals)
        if self._batches > 1:
            for index, total in enumerate(self._totals):
                self._totals[index] = total / self._batches
        if is_distributed():
            self._totals = self._totals or self._nothing()
            self._sum_over_ranks()
            ranks = self._totals[0].new_full((), float(added))
            all_reduce_sum_(ranks)
            added = added or ranks.item() > 0  # only a rank that added nothing waits for the answer
        if not added:
            self.clear()
            raise RuntimeError(
                "The step has no anchor gradient, so it would be unprotected: call accumulate() in each step."
            )
        self.reduced = True
        return self.accumulated()

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._totals, self._batches, self.reduced = [], 0, False

    def _require_reached(self, reached: Sequence[bool]) -> None:
        for index, layer in enumerate(self._by_layer(reached)):
            if layer and not any(layer):
                raise RuntimeError(
                    f"The anchor's gradient reached no parameter of layer {index}: it would be unprotected; "
                    "checkpointed layers need use_reentrant=False."
                )

    def _sum_over_ranks(self) -> None:
        """One collective a layer."""
        start = 0
        for parameters in filter(None, self._parameters):
            own = slice(start, start + len(parameters))
            flat = torch.cat([total.reshape(-1) for total in self._totals[own]])
            all_reduce_sum_(flat)
            pieces = flat.split([p.numel() for p in parameters])
            self._totals[own] = [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]
            start = own.stop

    def _nothing(self) -> list[Tensor]:
        return [_zeros(p) for layer in self._parameters for p in layer]

    def _by_layer[T](self, tensors: Sequence[T]) -> Iterator[list[T]]:
        remaining = iter(tensors)
        for parameters in self._parameters:
            yield [next(remaining) for _ in parameters]


def _zeros(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(at_least_float32(p.detach()))
