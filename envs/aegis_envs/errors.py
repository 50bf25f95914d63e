"""The errors a user of the simulators may cause; torch-free so that simulation workers start quickly."""

from aegis_policy.support.errors import AegisError


class SimulatorError(AegisError):
    """Input or a machine a simulator cannot work with. The message is one sentence with the mend."""


class TabletopError(SimulatorError):
    """Input the tabletop cannot work with."""


class MetaworldError(SimulatorError):
    """Input or an installation with which Meta-World cannot run."""
