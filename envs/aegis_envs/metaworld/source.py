"""Meta-World as the recorder sees it, asked for by the name of LeRobot's environment or of ours."""

from typing import Any, ClassVar

from lerobot.utils.constants import OBS_IMAGE

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.demonstrations import (
    CAMERA,
    MetaworldDemonstration,
    MetaworldRecipe,
    demonstrate_to_file,
)
from aegis_envs.metaworld.env import CONTROL_HZ, require_metaworld
from aegis_envs.metaworld.settings import LeRobotMetaworldSettings, MetaworldSettings, check_image_size
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
        env = config.env
        assert isinstance(env, MetaworldSettings | LeRobotMetaworldSettings)
        tasks = parse_tasks(env.task)
        image_size = _image_size(env, config.image_size)
        require_metaworld()
        return MetaworldRecipe(tuple(tasks), config.seed, noise_of(config, 0.0), image_size)

    def summary(self, demonstration: MetaworldDemonstration) -> dict[str, Any]:
        """See `Source.summary`."""
        return {name: getattr(demonstration, name) for name in ("attempt", "task", "env_seed", "instruction")}

    def track(self, demonstration: MetaworldDemonstration) -> dict[str, Any]:
        """Nothing: `env_seed` gives the scene back."""
        return {}


def _image_size(env: MetaworldSettings | LeRobotMetaworldSettings, given: int | None) -> int:
    if env.episode_length is not None:
        raise MetaworldError(NO_EPISODE_LENGTH)
    if isinstance(env, LeRobotMetaworldSettings):
        return check_image_size("--image_size", _LEROBOT_IMAGE_SIZE if given is None else given)
    if given is not None:
        raise MetaworldError("--image_size has no meaning here: use --env.image_size.")
    return env.image_size
