"""LeRobot's view of the fast Meta-World: `--env.type=aegis_metaworld`, one suite per task."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.env import (
    ACTION_DIM,
    CONTROL_HZ,
    IMAGE_SIZE,
    MAX_STEPS,
    STATE_DIM,
    MetaworldEnv,
    require_metaworld,
)
from aegis_envs.metaworld.tasks import parse_tasks
from aegis_envs.vector import make_vector, one_task_at_a_time

IMAGE_SIZES = range(64, 481)


def check_image_size(flag: str, size: int) -> int:
    """Return `size` if videos and policies can use it.

    Raises:
        MetaworldError: it is odd, which video codecs refuse, or outside 64 to 480.
    """
    if size not in IMAGE_SIZES or size % 2:
        raise MetaworldError(
            f"{flag}={size} must be an even number from {IMAGE_SIZES[0]} to {IMAGE_SIZES[-1]} pixels."
        )
    return size


@EnvConfig.register_subclass("aegis_metaworld")
@dataclass
class AegisMetaworldEnv(EnvConfig):
    """Meta-World with the observations of LeRobot's `metaworld`, at `image_size` pixels.

    `task` is a comma list of names (`reach-v3`) and of LeRobot's groups easy, medium, hard and very_hard, or all.

    Raises:
        MetaworldError: unknown task, or a number that cannot be.
    """

    task: str | None = "all"
    fps: int = CONTROL_HZ
    image_size: int = IMAGE_SIZE
    episode_length: int | None = None
    """Steps before an episode is cut off; 500, Meta-World's cap, unless given."""
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_tasks(self.task)
        one_task_at_a_time(self.max_parallel_tasks)
        if self.fps != CONTROL_HZ:
            raise MetaworldError(
                f"--env.fps={self.fps}: Meta-World is controlled {CONTROL_HZ} times a second, always."
            )
        check_image_size("--env.image_size", self.image_size)
        if self.episode_length is not None and not 1 <= self.episode_length <= MAX_STEPS:
            raise MetaworldError(f"--env.episode_length={self.episode_length} must be from 1 to {MAX_STEPS}.")
        shape = (self.image_size, self.image_size, 3)
        self.features = {
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(STATE_DIM,)),
            "pixels": PolicyFeature(type=FeatureType.VISUAL, shape=shape),
        }
        self.features_map = {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}

    @property
    def tasks(self) -> list[str]:
        """The tasks asked for, in suite order."""
        return parse_tasks(self.task)

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
