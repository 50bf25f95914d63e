"""Meta-World as the recorder sees it, asked for by LeRobot's configuration or by ours."""

from typing import Any, ClassVar

from lerobot.envs.configs import MetaworldEnv as LeRobotMetaworldEnv
from lerobot.utils.constants import OBS_IMAGE

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.configuration import AegisMetaworldEnv, check_image_size
from aegis_envs.metaworld.demonstrations import (
    CAMERA,
    MetaworldDemonstration,
    MetaworldRecipe,
    demonstrate_to_file,
)
from aegis_envs.metaworld.env import CONTROL_HZ, require_metaworld
from aegis_envs.metaworld.tasks import parse_tasks
from aegis_envs.recording.sources import NO_EPISODE_LENGTH, RecordConfig, noise_of

_LEROBOT_IMAGE_SIZE = 480


class MetaworldSource:
    """`aegis_envs.recording.sources.Source` for `--env.type=metaworld` and `--env.type=aegis_metaworld`."""

    name: ClassVar[str] = "metaworld"
    robot_type: ClassVar[str] = "metaworld"
    fps: ClassVar[int] = CONTROL_HZ
    cameras: ClassVar[dict[str, str]] = {CAMERA: OBS_IMAGE}
    state_names: ClassVar[list[str]] = ["x", "y", "z", "gripper"]
    action_names: ClassVar[list[str]] = ["dx", "dy", "dz", "gripper"]
    packages: ClassVar[tuple[str, ...]] = ("mujoco", "metaworld")
    tracked: ClassVar[str | None] = None
    demonstrate_to_file = staticmethod(demonstrate_to_file)
    load = staticmethod(MetaworldDemonstration.load)

    def recipe(self, config: RecordConfig) -> MetaworldRecipe:
        """See `Source.recipe`."""
        if config.scatter is not None:
            raise MetaworldError("--scatter has no meaning here: Meta-World chooses where the hand starts.")
        tasks = parse_tasks(config.env.task)
        image_size = _image_size(config)
        require_metaworld()
        return MetaworldRecipe(tuple(tasks), config.seed, noise_of(config, 0.0), image_size)

    def summary(self, demonstration: MetaworldDemonstration) -> dict[str, Any]:
        """See `Source.summary`."""
        return {name: getattr(demonstration, name) for name in ("attempt", "task", "env_seed", "instruction")}

    def track(self, demonstration: MetaworldDemonstration) -> dict[str, Any]:
        """Nothing: `env_seed` gives the scene back."""
        return {}


def _image_size(config: RecordConfig) -> int:
    env = config.env
    if isinstance(env, AegisMetaworldEnv):
        if config.image_size is not None:
            raise MetaworldError("--image_size has no meaning here: use --env.image_size.")
        if env.episode_length is not None:
            raise MetaworldError(NO_EPISODE_LENGTH)
        return env.image_size
    assert isinstance(env, LeRobotMetaworldEnv)
    if env.fps != CONTROL_HZ:
        raise MetaworldError(
            f"--env.fps={env.fps}: Meta-World is controlled {CONTROL_HZ} times a second, always."
        )
    if env.episode_length != type(env).episode_length:
        raise MetaworldError(NO_EPISODE_LENGTH)
    if env.obs_type != "pixels_agent_pos":
        raise MetaworldError(f"--env.obs_type={env.obs_type} cannot be recorded: use pixels_agent_pos.")
    return check_image_size(
        "--image_size", _LEROBOT_IMAGE_SIZE if config.image_size is None else config.image_size
    )
