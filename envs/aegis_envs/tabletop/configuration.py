"""LeRobot's view of the tabletop: `--env.type=aegis_tabletop`, one suite per task."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from aegis_envs.tabletop.env import ACTION_DIM, STATE_DIM, TabletopEnv
from aegis_envs.tabletop.settings import TabletopSettings
from aegis_envs.tabletop.sim import CAMERAS
from aegis_envs.vector import make_vector, one_task_at_a_time


@EnvConfig.register_subclass("aegis_tabletop")
@dataclass
class AegisTabletopEnv(TabletopSettings, EnvConfig):
    """The tabletop, see `TabletopSettings`."""

    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_task_at_a_time(self.max_parallel_tasks)
        shape = (self.image_size, self.image_size, 3)
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(STATE_DIM,)),
            **{f"pixels/{name}": PolicyFeature(type=FeatureType.VISUAL, shape=shape) for name in CAMERAS},
        }
        self.features_map = {
            ACTION: ACTION,
            "agent_pos": OBS_STATE,
            **{f"pixels/{name}": f"{OBS_IMAGES}.{name}" for name in CAMERAS},
        }

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {
            "split": self.split or "test",
            "image_size": self.image_size,
            "max_episode_steps": self.episode_length,
        }

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """`{task: {0: vector of n_envs}}`, one suite a task, so that LeRobot reports success per task."""
        return {
            task: {0: make_vector([partial(TabletopEnv, task, **self.gym_kwargs)] * n_envs, use_async_envs)}
            for task in self.tasks
        }
