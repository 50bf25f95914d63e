"""The anchors that block parts of linear layers' weights: `subspace` and `kronecker`."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from aegis_policy.isolation import Anchor, AnchorError, LowRankProjector, select_blocks
from aegis_policy.protections.anchor_kind import AnchorKind, Figures, Gradient
from aegis_policy.support.errors import AegisError, some
from aegis_policy.support.finding import Finding

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone


@dataclass
class BlockOptions:
    """Options of `subspace` and `kronecker`.

    Attributes:
        anchor_energy: the share to protect of the input energy (by default 0.9 for `subspace`) or of the Fisher weight
            (0.95 for `kronecker`).
        anchor_soft: take away a share of every component that grows with its weight, instead of all of the heaviest and
            nothing of the others.
    """

    anchor_energy: dict[str, float] | float | None = None
    anchor_soft: bool = False


_FEW = 0.01
"""The share of a layer's input directions below which it counts as hardly protected."""


class BlockKind(AnchorKind):
    """Blocks the components of linear layers' weights that carry most.

    Nothing but those weights learns beside it: no block guards norms, biases and embeddings.
    """

    Options = BlockOptions
    uses_outputs: ClassVar[bool]
    """Components are weighed with the Fisher information of a layer's outputs too."""
    projector: LowRankProjector

    def check_options(self) -> None:
        energy = self.option("anchor_energy")
        if energy is None or not 0 < energy <= 1:
            raise AegisError(f"--policy.anchor_energy={energy} must lie between 0 and 1.")

    def held_by(self, anchor: Anchor) -> bool:
        factors = anchor.factors.values()
        return bool(factors) and (not self.uses_outputs or all(each.outputs is not None for each in factors))

    def check_anchor(self, anchor: Anchor, vlm: "VLMBackbone") -> None:
        _require_factors(_learning(vlm), anchor)

    @property
    def part(self) -> dict[str, Any]:
        return {"inputs": True, **({"outputs": True} if self.uses_outputs else {})}

    def guarded(self, vlm: "VLMBackbone") -> list[Tensor]:
        return [layer.weight for layer in vlm.linear_layers.values()]

    def begin_training(self, vlm: "VLMBackbone", anchor: Anchor) -> None:
        self._layers = _learning(vlm)
        self.projector = block_layers(
            self._layers,
            anchor,
            self.name,
            energy=self.option("anchor_energy"),
            soft=self.config.anchor_soft,
            granularity=self.option("granularity"),
            acts_on=self.option("project"),
        )

    def coverage(self) -> Iterator[Finding]:
        yield coverage(self._layers, self.projector, self.name)

    def diagnose(self, gradient: Gradient) -> Figures:
        return {"vqa_gradient_blocked": float(self.projector.blocked_share(gradient))}


class Subspace(BlockKind):
    """Blocks the leading directions of every layer's pretrained inputs."""

    name = "subspace"
    defaults: ClassVar[Mapping[str, Any]] = {
        "anchor_energy": 0.9,
        "project": "update",
        "granularity": "tensor",
    }
    uses_outputs = False


class Kronecker(BlockKind):
    """Blocks the components with the most Fisher weight, over all layers."""

    name = "kronecker"
    defaults: ClassVar[Mapping[str, Any]] = {"anchor_energy": 0.95, "project": "update", "granularity": "all"}
    uses_outputs = True


BLOCK_KINDS: dict[str, type[BlockKind]] = {kind.name: kind for kind in (Subspace, Kronecker)}
"""By name. Their energies are what kept the answers and most of the learning (docs/ablation.md)."""


def block_layers(
    layers: Mapping[str, nn.Linear],
    anchor: Anchor,
    kind: str,
    *,
    energy: float,
    granularity: str,
    soft: bool = False,
    acts_on: str = "update",
) -> LowRankProjector:
    """The projector of `subspace` or `kronecker`.

    Args:
        layers: what learns, by the anchor's names.
        anchor: with the factors of all of them.
        kind: of `BLOCK_KINDS`.
        energy, granularity, soft, acts_on: as `anchor_energy`, `granularity`, `anchor_soft` and `project` of
            `AegisConfig`.

    Raises:
        AegisError: a layer is unknown to the anchor, or it cannot protect so much.
    """
    try:
        _require_factors(layers, anchor)
    except AnchorError as error:
        raise AegisError(str(error)) from error
    try:
        blocks = select_blocks(
            anchor.factors,
            _groups(layers, granularity),
            energy,
            use_outputs=BLOCK_KINDS[kind].uses_outputs,
            soft=soft,
        )
    except ValueError as error:
        raise AegisError(
            f"An energy of {energy} cannot be protected with the {kind} anchor: {error}"
        ) from error
    try:
        return LowRankProjector(layers, blocks, acts_on)
    except ValueError as error:
        raise AegisError(f"The {kind} anchor cannot protect this model: {error}") from error


def coverage(layers: Mapping[str, nn.Linear], projector: LowRankProjector, kind: str) -> Finding:
    """How many of every layer's input directions have something blocked; a warning where that is next to nothing."""
    blocks = {id(weight): block for weight, block in projector.blocks}
    directions = {
        name: blocks[id(layer.weight)].directions if id(layer.weight) in blocks else 0
        for name, layer in layers.items()
    }
    shares = sorted(count / layers[name].in_features for name, count in directions.items())
    few = [
        name for name, count in directions.items() if count <= 1 or count < _FEW * layers[name].in_features
    ]
    told = (
        f"The {kind} anchor blocks {shares[0]:.1%}, {median(shares):.1%} and {shares[-1]:.1%} of a layer's input "
        f"directions (least, median and most of {len(shares)} layers)"
    )
    if not few:
        return Finding("ok", told)
    return Finding(
        "warning",
        f"{told}; in {len(few)} of them ({few[0]}) that is one direction or none, or less than {_FEW:.0%}, and keeps "
        "little of what they know",
        "make the anchor with more questions or a higher --rank, or raise --policy.anchor_energy",
    )


def _learning(vlm: "VLMBackbone") -> dict[str, nn.Linear]:
    return {name: layer for name, layer in vlm.linear_layers.items() if layer.weight.requires_grad}


def _require_factors(layers: Mapping[str, nn.Linear], anchor: Anchor) -> None:
    """See that an anchor knows all of these layers, as wide as they are.

    Raises:
        AnchorError: it does not.
    """
    mend = "rebuild it from this VLM with aegis-anchor"
    if missing := sorted(layers.keys() - anchor.factors.keys()):
        raise AnchorError(
            f"The anchor says nothing about {some(missing)}, which would learn unprotected",
            mend,
        )
    for name, layer in layers.items():
        inputs, outputs, _ = anchor.factors[name]
        sides = [(inputs, layer.in_features, "inputs"), (outputs, layer.out_features, "outputs")]
        for spectrum, width, side in sides:
            if spectrum is not None and len(spectrum.vectors_DK) != width:
                raise AnchorError(
                    f"The anchor's {name} has {len(spectrum.vectors_DK)} {side}, and the model's {width}",
                    mend,
                )


def _groups(names: Iterable[str], granularity: str) -> list[list[str]]:
    """Names of linear layers that share a threshold: each alone, those of a transformer layer, or all."""
    groups: dict[str, list[str]] = {}
    for name in names:
        layer = re.match(r".*\blayers\.\d+\b", name)
        key = {"tensor": name, "layer": layer.group() if layer else name, "all": ""}[granularity]
        groups.setdefault(key, []).append(name)
    return list(groups.values())
