"""The tabletop as the recorder sees it."""

from typing import Any, ClassVar

import numpy as np
from lerobot.utils.constants import OBS_IMAGES

from aegis_envs.recording.sources import NO_EPISODE_LENGTH, RecordConfig, noise_of, scatter_of
from aegis_envs.tabletop.demonstrations import Demonstration, Recipe, demonstrate_to_file
from aegis_envs.tabletop.settings import TabletopSettings
from aegis_envs.tabletop.sim import CAMERAS, CONTROL_HZ
from aegis_policy.support.errors import AegisError


class TabletopSource:
    """`aegis_envs.recording.sources.Source` for `--env.type=aegis_tabletop`."""

    name: ClassVar[str] = "tabletop"
    robot_type: ClassVar[str] = "aegis_tabletop"
    fps: ClassVar[int] = CONTROL_HZ
    cameras: ClassVar[dict[str, str]] = {camera: f"{OBS_IMAGES}.{camera}" for camera in CAMERAS}
    state_names: ClassVar[list[str]] = [
        "x",
        "y",
        "z",
        "gripper",
        "turn",
        "shoulder",
        "elbow",
        "wrist",
    ]
    action_names: ClassVar[list[str]] = ["dx", "dy", "dz", "gripper"]
    packages: ClassVar[tuple[str, ...]] = ("mujoco",)
    tracked: ClassVar[str | None] = "scenes.jsonl"
    demonstrate_to_file = staticmethod(demonstrate_to_file)
    load = staticmethod(Demonstration.load)

    def recipe(self, config: RecordConfig) -> Recipe:
        """See `Source.recipe`."""
        env = config.env
        assert isinstance(env, TabletopSettings)
        if env.episode_length is not None:
            raise AegisError(NO_EPISODE_LENGTH)
        if config.image_size is not None:
            raise AegisError("--image_size has no meaning here: use --env.image_size.")
        return Recipe(
            tasks=tuple(env.tasks),
            split=env.split or "train",
            seed=config.seed,
            noise=noise_of(config, 0.5),
            scatter=scatter_of(config, 0.5),
            image_size=env.image_size,
        )

    def summary(self, demonstration: Demonstration) -> dict[str, Any]:
        """See `Source.summary`."""
        episode = demonstration.episode
        return {
            "attempt": demonstration.attempt,
            "task": episode.task,
            "split": episode.split,
            "target": episode.target,
            "zone": episode.zone,
            "instruction": episode.instruction,
        }

    def track(self, demonstration: Demonstration) -> dict[str, Any]:
        """The scene, and where its objects are in each frame."""
        return {
            "scene": demonstration.episode.scene.to_dict(),
            "objects": np.round(demonstration.objects, 4).astype(float).tolist(),
        }
