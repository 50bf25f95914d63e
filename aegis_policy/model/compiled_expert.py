"""An expert's forward pass through `torch.compile`, for the many passes of a chunk; training never takes this way."""

import logging

import torch
from torch import Tensor

from aegis_policy.model.expert import ActionExpert, PrefixCache
from aegis_policy.support.errors import one_line


class CompiledExpert:
    """Calls an expert by compiled code, or as it is, with a warning, where this machine cannot compile it.

    One piece of code serves prefixes of every length. The expert is an argument, so that a copied policy has its own.

    Args:
        mode: of `torch.compile`.
    """

    def __init__(self, mode: str) -> None:
        self._call = torch.compile(_call, mode=mode)

    def __call__(
        self, expert: ActionExpert, x_BHA: Tensor, time_B: Tensor, state_BS: Tensor, cache: PrefixCache
    ) -> Tensor:
        for each in (*cache.keys, *cache.values):
            torch._dynamo.maybe_mark_dynamic(each, 2)
        torch._dynamo.maybe_mark_dynamic(cache.mask, 3)
        try:
            return self._call(expert, x_BHA, time_B, state_BS, cache)
        except torch._dynamo.exc.TorchDynamoException as error:
            logging.warning(
                "--policy.compile_model=true changes nothing here, for this machine cannot compile the expert (%s).",
                one_line(error),
            )
            self._call = _call
        return expert(x_BHA, time_B, state_BS, cache)


def _call(
    expert: ActionExpert, x_BHA: Tensor, time_B: Tensor, state_BS: Tensor, cache: PrefixCache
) -> Tensor:
    return expert(x_BHA, time_B, state_BS, cache)
