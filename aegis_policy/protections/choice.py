"""The choice of a protection in a policy's configuration, with the options that mean something to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aegis_policy.protections import CHOICES, OPTIONS, Protection, protection_named
from aegis_policy.support.errors import AegisError
from aegis_policy.support.lerobot_flags import given_flags, resuming


@dataclass
class ProtectionChoice:
    """Fields of a configuration that has options of protections among its own.

    Attributes:
        protection: its name.
        defaults_taken: the protection, and the values that its options took that the user left open. They stay with a
            checkpoint, so that another default of a later version changes no old run; under another protection (or
            anchor) these options are open again. Written by `resolve_options`.
    """

    protection: str = "aegis"
    defaults_taken: dict[str, Any] | None = None

    def resolve_options(self) -> Protection:
        """Give the options that were left open (None) the values that the protection takes for them.

        Values that another protection or anchor had taken, and that a checkpoint brought along, are left open first,
        unless the command line gives them anew.

        Returns:
            The protection as configured.

        Raises:
            AegisError: there is no such protection, or no such anchor.
        """
        protection = protection_named(self.protection)(self)
        taken = dict(self.defaults_taken or {})
        chosen = {name: taken.pop(name, None) for name in CHOICES}
        taken = {
            name: value for name, value in taken.items() if name in OPTIONS and getattr(self, name) == value
        }
        if any(getattr(self, name) != chosen[name] for name in protection.chosen_by):
            for name in taken.keys() - given_flags():
                setattr(self, name, None)
            taken = {}
        for name, value in protection.defaults().items():
            if getattr(self, name) is None:
                taken[name] = value
                setattr(self, name, value)
        choice = {name: getattr(self, name) for name in protection.chosen_by}
        self.defaults_taken = {**choice, **taken} if taken else None
        return protection

    def refuse_idle(self, beside: Mapping[str, str]) -> None:
        """Refuse fields that are given and change nothing.

        Args:
            beside: field -> beside what it changes nothing.

        Raises:
            AegisError: names the first.
        """
        for name, what in sorted(beside.items()):
            default = getattr(type(self), name)
            if getattr(self, name) != default:
                raise AegisError(
                    f"--policy.{name} changes nothing {what}: leave it out, or, if a checkpoint brought it, give "
                    f"its default, {'null' if default is None else default}."
                )

    def idle_options(self, protection: Protection) -> dict[str, str]:
        """Options of protections that change nothing, and beside what.

        Options of another protection are let pass when a training is resumed: they are the checkpoint's, which refuses
        that other protection (`checkpoint.changes`).
        """
        foreign = {
            name: f"with --policy.protection={self.protection}"
            for name in OPTIONS - protection.option_names()
            if not resuming() and hasattr(self, name)
        }
        return foreign | {name: f"with {flag}" for name, flag in protection.idle().items()}
