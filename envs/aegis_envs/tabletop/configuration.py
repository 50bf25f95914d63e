"""LeRobot's view of the tabletop: `--env.type=aegis_tabletop`, one suite per task."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.env import ACTION_DIM, STATE_DIM, TabletopEnv
from aegis_envs.tabletop.episodes import check_split
from aegis_envs.tabletop.sim import CAMERAS, CONTROL_HZ, IMAGE_SIZE
from aegis_envs.tabletop.tasks import parse_tasks
from aegis_envs.vector import make_vector, one_task_at_a_time

_IMAGE_SIZES = range(1, 4_097)
_EPISODE_LENGTHS = range(1, 100_001)


@EnvConfig.register_subclass("aegis_tabletop")
@dataclass
class AegisTabletopEnv(EnvConfig):
    """The tabletop.

    `task` is reach, push, pick, bowl, a comma list, or all; `split` is train, test (new scenes) or unseen
    (colour-shape pairs that `train` never instructs). Unless given, policies are evaluated on test and
    demonstrations recorded on train.

    Raises:
        TabletopError: unknown task or split, or a number that cannot be.
    """

    task: str | None = "all"
    split: str | None = None
    fps: int = CONTROL_HZ
    image_size: int = IMAGE_SIZE
    episode_length: int | None = None
    features: dict[str, PolicyFeature] = field(default_factory=dict)
    features_map: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse_tasks(self.task)
        one_task_at_a_time(self.max_parallel_tasks)
        if self.split is not None:
            check_split(self.split)
        if self.fps != CONTROL_HZ:
            raise TabletopError(
                f"--env.fps={self.fps}: the arm is controlled {CONTROL_HZ} times a second, always."
            )
        if self.image_size not in _IMAGE_SIZES:
            raise TabletopError(
                f"--env.image_size={self.image_size} must be from {_IMAGE_SIZES[0]} to {_IMAGE_SIZES[-1]} pixels."
            )
        if self.episode_length is not None and self.episode_length not in _EPISODE_LENGTHS:
            raise TabletopError(
                f"--env.episode_length={self.episode_length} must be from 1 to {_EPISODE_LENGTHS[-1]} steps."
            )
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
    def tasks(self) -> list[str]:
        """The tasks asked for, in suite order."""
        return parse_tasks(self.task)

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
