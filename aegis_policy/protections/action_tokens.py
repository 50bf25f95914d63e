"""Action chunks as tokens, for protections under which the backbone learns actions as it learnt words.

`uniform` comes with this package; another package offers one as an entry point of the group
`aegis_policy.action_tokenizers`: a function `(config: AegisConfig) -> ActionTokenizer`.

Shapes: B batch, H action horizon, A action dimension, K tokens.
"""

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from lerobot.configs import NormalizationMode
from torch import Tensor

from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.configuration_aegis import AegisConfig

ENTRY_POINTS = "aegis_policy.action_tokenizers"


class ActionChunks(NamedTuple):
    """Normalised actions (B, H, A), and which of their steps are padding, bool (B, H), or None where none are."""

    actions_BHA: Tensor
    is_pad_BH: Tensor | None


class ActionTokenizer(Protocol):
    """Turns normalised action chunks into `config.action_bins` kinds of tokens."""

    def encode(self, chunks: ActionChunks) -> tuple[Tensor, Tensor]:
        """Tokens (B, K), int64 from 0 to bins - 1, and whether each counts, bool (B, K)."""
        ...


class UniformBins:
    """One token for every number of a chunk, step after step: the bin it falls into (RT-2, arXiv 2307.15818).

    Args:
        bins: of equal width.
        limit: they span [-limit, limit]; what lies outside falls into the outermost.
    """

    def __init__(self, bins: int, limit: float) -> None:
        self.bins, self.limit = bins, limit

    def encode(self, chunks: ActionChunks) -> tuple[Tensor, Tensor]:
        finite_BHA = torch.nan_to_num(
            chunks.actions_BHA
        )  # the flow loss, which is not finite either, stops the run
        share_BHA = (finite_BHA / self.limit + 1) / 2
        tokens_BHA = (share_BHA * self.bins).floor().clamp(0, self.bins - 1).long()
        counts_BHA = torch.ones_like(tokens_BHA, dtype=torch.bool)
        if chunks.is_pad_BH is not None:
            counts_BHA = counts_BHA & ~chunks.is_pad_BH[..., None]
        return tokens_BHA.flatten(1), counts_BHA.flatten(1)


def action_tokenizer(config: "AegisConfig") -> ActionTokenizer:
    """The tokenizer that `config.action_tokenizer` names.

    Raises:
        AegisError: there is none of that name.
    """
    if config.action_tokenizer == "uniform":
        mode = config.normalization_mapping.get("ACTION", NormalizationMode.IDENTITY)
        return UniformBins(config.action_bins, 3.0 if mode is NormalizationMode.MEAN_STD else 1.0)
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if config.action_tokenizer not in offered:
        raise AegisError(
            f"--policy.action_tokenizer={config.action_tokenizer} is unknown: choose one of "
            f"{', '.join(['uniform', *sorted(offered)])}."
        )
    tokenizer: ActionTokenizer = offered[config.action_tokenizer].load()(config)
    return tokenizer
