"""The module LeRobot's plugin discovery imports: it registers the policies, their optimizer, a processor step
and the environments, how action chunks are read, and that a dataset is looked at before it is opened.

The packages themselves stay light, so that simulation workers and `aegis_policy.isolation` load without LeRobot.
"""

import aegis_envs.libero.configuration
import aegis_envs.metaworld.configuration
import aegis_envs.tabletop.configuration  # noqa: F401
import aegis_policy.configuration_aegis
import aegis_policy.data.vectors
import aegis_policy.lerobot_vlas.configuration_vlas  # noqa: F401
from aegis_policy.data import chunk_reading, opening

chunk_reading.choose_reading()
opening.check_when_opened()
