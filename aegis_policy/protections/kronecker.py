"""The Kronecker anchor under `aegis`: the components of weights that carry the answers' Fisher information."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aegis_policy.isolation import Anchor, BlockedComponents, LinearFactors, select_components
from aegis_policy.protections.blocks import BlockKind
from aegis_policy.support.errors import AegisError


@dataclass
class KroneckerOptions:
    """Options of `kronecker`.

    Attributes:
        anchor_energy: the share to protect of the Fisher weight of all layers together; above 0, at most 1. By default
            0.95.
    """

    anchor_energy: float | None = None


class Kronecker(BlockKind):
    """Blocks the components with the most Fisher weight, over all layers."""

    name = "kronecker"
    Options = KroneckerOptions
    defaults: ClassVar[Mapping[str, Any]] = {"anchor_energy": 0.95}

    def held_by(self, anchor: Anchor) -> bool:
        return super().held_by(anchor) and all(each.outputs is not None for each in anchor.factors.values())

    @property
    def part(self) -> dict[str, Any]:
        return {"inputs": True, "outputs": True}

    def select(self, factors: Mapping[str, LinearFactors]) -> Mapping[str, BlockedComponents]:
        energy = self.config.anchor_energy
        assert energy is not None, "resolved by AegisConfig"
        try:
            return select_components(factors, energy)
        except ValueError as error:
            raise AegisError(
                f"--policy.anchor_energy={energy} is more than the kronecker anchor can protect: {error}"
            ) from error
