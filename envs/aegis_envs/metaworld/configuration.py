"""LeRobot's view of the fast Meta-World: `--env.type=aegis_metaworld`, one suite per task."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from aegis_envs.metaworld.env import ACTION_DIM, STATE_DIM, MetaworldEnv, require_metaworld
from aegis_envs.metaworld.settings import MetaworldSettings
from aegis_envs.vector import make_vector, one_task_at_a_time


@EnvConfig.register_subclass("aegis_metaworld")
@dataclass
class AegisMetaworldEnv(MetaworldSettings, EnvConfig):
    """Meta-World with the observations of LeRobot's `metaworld`, at `image_size` pixels; see `MetaworldSettings`."""

    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_task_at_a_time(self.max_parallel_tasks)
        shape = (self.image_size, self.image_size, 3)
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(STATE_DIM,)),
            "pixels": PolicyFeature(type=FeatureType.VISUAL, shape=shape),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "max_episode_steps": self.episode_length}

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """`{task: {0: vector of n_envs}}`, one suite a task, so that LeRobot reports success per task.

        Raises:
            MetaworldError: Meta-World cannot run here.
        """
        require_metaworld()
        return {
            task: {0: make_vector([partial(MetaworldEnv, task, **self.gym_kwargs)] * n_envs, use_async_envs)}
            for task in self.tasks
        }
