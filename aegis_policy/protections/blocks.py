"""From what an anchor knows of linear layers to the projector that blocks a part of each of them."""

import re
from collections.abc import Iterable, Mapping

from torch import nn

from aegis_policy.isolation import Anchor, LowRankProjector, select_blocks
from aegis_policy.support.errors import AegisError

DEFAULT_ENERGY = {"subspace": 0.9, "kronecker": 0.95}
"""Share to protect, by kind: what kept the answers and most of the learning (docs/ablation.md)."""


def block_layers(
    layers: Mapping[str, nn.Linear],
    anchor: Anchor,
    kind: str,
    *,
    energy: float,
    soft: bool = False,
    granularity: str | None = None,
    acts_on: str | None = None,
) -> LowRankProjector:
    """The projector of `subspace` or `kronecker`, see `AegisConfig` for the options.

    Args:
        layers: what learns, by the anchor's names.
        anchor: with the factors of all of them.
        kind: `subspace` or `kronecker`.
        energy, soft, granularity, acts_on: as `anchor_energy`, `anchor_soft`, `granularity` and `project`.

    Raises:
        AegisError: a layer is unknown to the anchor, or it cannot protect so much.
    """
    if missing := sorted(layers.keys() - anchor.factors.keys()):
        raise AegisError(
            f"The anchor says nothing about {missing[0]} and {len(missing) - 1} more layers that would learn "
            "unprotected: rebuild it from this VLM with aegis-anchor."
        )
    granularity = granularity or ("all" if kind == "kronecker" else "tensor")
    try:
        blocks = select_blocks(
            anchor.factors, _groups(layers, granularity), energy, use_outputs=kind == "kronecker", soft=soft
        )
        return LowRankProjector(layers, blocks, acts_on or "update")
    except ValueError as error:
        raise AegisError(
            f"An energy of {energy} cannot be protected with the {kind} anchor: {error}"
        ) from error


def _groups(names: Iterable[str], granularity: str) -> list[list[str]]:
    """Names of linear layers that share a threshold: each alone, those of a transformer layer, or all."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*\blayers\.\d+\b", name)
        key = {"tensor": name, "layer": layer.group() if layer else name, "all": ""}[granularity]
        groups.setdefault(key, []).append(name)
    return list(groups.values())
