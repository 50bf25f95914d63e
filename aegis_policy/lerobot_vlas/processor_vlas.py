"""LeRobot's own processors of each policy, under the names that it looks for."""

from lerobot.policies.pi0.processor_pi0 import make_pi0_pre_post_processors
from lerobot.policies.pi05.processor_pi05 import make_pi05_pre_post_processors
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

make_aegis_pi0_pre_post_processors = make_pi0_pre_post_processors
make_aegis_pi05_pre_post_processors = make_pi05_pre_post_processors
make_aegis_smolvla_pre_post_processors = make_smolvla_pre_post_processors
