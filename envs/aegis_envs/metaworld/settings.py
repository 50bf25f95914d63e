"""The flags `--env.*` of Meta-World that evaluation and recording share: light, `configuration` is LeRobot's view."""

from dataclasses import dataclass

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.env import CONTROL_HZ, IMAGE_SIZE, MAX_STEPS
from aegis_envs.metaworld.tasks import parse_tasks

_IMAGE_SIZES = range(64, 481)
_LEROBOT_OBSERVATIONS = "pixels_agent_pos"


def check_image_size(flag: str, size: int) -> int:
    """Return `size` if videos and policies can use it.

    Raises:
        MetaworldError: it is odd, which video codecs refuse, or outside 64 to 480.
    """
    if size not in _IMAGE_SIZES or size % 2:
        raise MetaworldError(
            f"{flag}={size} must be an even number from {_IMAGE_SIZES[0]} to {_IMAGE_SIZES[-1]} pixels."
        )
    return size


@dataclass
class MetaworldSettings:
    """Meta-World as this package draws it.

    `task` is a comma list of names (`reach-v3`) and of LeRobot's groups easy, medium, hard and very_hard, or all.

    Raises:
        MetaworldError: unknown task, or a number that cannot be.
    """

    task: str | None = "all"
    fps: int = CONTROL_HZ
    image_size: int = IMAGE_SIZE
    episode_length: int | None = None
    """Steps before an episode is cut off; 500, Meta-World's cap, unless given."""

    def __post_init__(self) -> None:
        parse_tasks(self.task)
        _check_rate(self.fps)
        check_image_size("--env.image_size", self.image_size)
        if self.episode_length is not None and not 1 <= self.episode_length <= MAX_STEPS:
            raise MetaworldError(f"--env.episode_length={self.episode_length} must be from 1 to {MAX_STEPS}.")

    @property
    def tasks(self) -> list[str]:
        """The tasks asked for, in suite order."""
        return parse_tasks(self.task)


@dataclass
class LeRobotMetaworldSettings:
    """Meta-World as LeRobot's own `metaworld` shows it, as far as that has a meaning in a recording; `task` as above.

    Raises:
        MetaworldError: another rate or other observations than a recording has.
    """

    task: str | None = "all"
    fps: int = CONTROL_HZ
    episode_length: int | None = None
    obs_type: str = _LEROBOT_OBSERVATIONS

    def __post_init__(self) -> None:
        _check_rate(self.fps)
        if self.obs_type != _LEROBOT_OBSERVATIONS:
            raise MetaworldError(
                f"--env.obs_type={self.obs_type} cannot be recorded: use {_LEROBOT_OBSERVATIONS}."
            )


def _check_rate(fps: int) -> None:
    if fps != CONTROL_HZ:
        raise MetaworldError(
            f"--env.fps={fps}: Meta-World is controlled {CONTROL_HZ} times a second, always."
        )
