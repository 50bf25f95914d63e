"""The module LeRobot's plugin discovery imports: it registers the policy, its optimizer and the environments.

The packages themselves stay light, so that simulation workers and `aegis_policy.isolation` load without LeRobot.
"""

import aegis_envs.configuration_libero
import aegis_envs.configuration_metaworld
import aegis_envs.configuration_tabletop  # noqa: F401
import aegis_policy.configuration_aegis  # noqa: F401
