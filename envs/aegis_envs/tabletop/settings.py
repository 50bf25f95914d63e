"""The flags `--env.*` of the tabletop that evaluation and recording share: light, `configuration` is LeRobot's view."""

from dataclasses import dataclass

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.episodes import check_split
from aegis_envs.tabletop.sim import CONTROL_HZ, IMAGE_SIZE
from aegis_envs.tabletop.tasks import parse_tasks

_IMAGE_SIZES = range(1, 4_097)
_EPISODE_LENGTHS = range(1, 100_001)


@dataclass
class TabletopSettings:
    """What scenes are shown, and how.

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

    def __post_init__(self) -> None:
        parse_tasks(self.task)
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

    @property
    def tasks(self) -> list[str]:
        """The tasks asked for, in suite order."""
        return parse_tasks(self.task)
