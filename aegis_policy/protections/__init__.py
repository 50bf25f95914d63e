"""The protections: what each lets the flow loss do to the backbone.

One small class a protection, found by its name in `PROTECTIONS`. They share the rule of what may learn: the
backbone's decoder layers where the protection trains them, the vision tower and the projector where the user asks
for it; what narrows or widens that says so.
"""

from aegis_policy.protections.aegis import Aegis
from aegis_policy.protections.base import Protection, Step
from aegis_policy.protections.distill import Distill
from aegis_policy.protections.knowledge_insulation import KnowledgeInsulation
from aegis_policy.protections.lora import Lora
from aegis_policy.protections.penalties import EWC, L2SP, W2Penalty
from aegis_policy.protections.proximity import MAPS, DecoupledL2SP
from aegis_policy.protections.replay import Replay
from aegis_policy.protections.simple import Freeze, NoProtection, StopGradient
from aegis_policy.support.errors import AegisError

__all__ = ["CHOICES", "OPTIONS", "PROTECTIONS", "Protection", "Step", "protection_named"]

PROTECTIONS: dict[str, type[Protection]] = {
    "none": NoProtection,
    "freeze": Freeze,
    "stop_gradient": StopGradient,
    "lora": Lora,
    "w2_penalty": W2Penalty,
    "l2_sp": L2SP,
    "decoupled_l2_sp": DecoupledL2SP,
    "maps": MAPS,
    "ewc": EWC,
    "distill": Distill,
    "replay": Replay,
    "knowledge_insulation": KnowledgeInsulation,
    "aegis": Aegis,
}
"""`--policy.protection` -> what it does."""

OPTIONS = frozenset().union(*(protection.option_names() for protection in PROTECTIONS.values()))
"""The configuration's fields that belong to some protection."""

CHOICES = frozenset().union(*(protection.chosen_by for protection in PROTECTIONS.values()))
"""Those that decide what options become that were left open."""


def protection_named(name: str) -> type[Protection]:
    """Look a protection up.

    Raises:
        AegisError: there is none of that name.
    """
    if name not in PROTECTIONS:
        raise AegisError(f"--policy.protection={name} is unknown: choose one of {', '.join(PROTECTIONS)}.")
    return PROTECTIONS[name]
