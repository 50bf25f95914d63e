"""What the recorder asks of a simulator with an expert, and the flags from which it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import draccus
import numpy as np
from numpy.typing import NDArray

from aegis_envs.metaworld.settings import LeRobotMetaworldSettings, MetaworldSettings
from aegis_envs.tabletop.settings import TabletopSettings
from aegis_policy.support.errors import AegisError

PROVENANCE_FILE = "recording.json"
"""Beside the dataset, says how every episode came to be."""
NO_EPISODE_LENGTH = "--env.episode_length has no meaning here: an expert's episode ends when it succeeds."


class RecordedEnv(draccus.ChoiceRegistry):  # LeRobot's own classes take seconds to import
    """What is recorded."""


@RecordedEnv.register_subclass("aegis_tabletop")
@dataclass
class RecordedTabletop(TabletopSettings, RecordedEnv):
    """The tabletop; its settings are `TabletopSettings`'."""


@RecordedEnv.register_subclass("aegis_metaworld")
@dataclass
class RecordedMetaworld(MetaworldSettings, RecordedEnv):
    """Meta-World as this package draws it."""


@RecordedEnv.register_subclass("metaworld")
@dataclass
class RecordedLeRobotMetaworld(LeRobotMetaworldSettings, RecordedEnv):
    """Meta-World as LeRobot shows it."""


@dataclass
class RecordConfig:
    """Flags of `aegis-record`."""

    env: RecordedEnv = field(default_factory=RecordedTabletop)
    root: Path | None = None
    """Where the dataset goes; a folder that is absent or empty. `data/tabletop` or `data/metaworld` unless given."""
    repo_id: str | None = None
    """Name inside the dataset; `local/<root's name>` unless given."""
    episodes: int = 400
    """Successful demonstrations in all, the tasks taking turns."""
    seed: int = 0
    video: bool = False
    """Store cameras as video (small) instead of images (fast random access)."""
    num_workers: int = 2
    noise: float | None = None
    """Strength of the shoves the expert has to recover from, from 0 (none) to 1 (the largest action). 0.5 at the
    tabletop, 0 in Meta-World unless given."""
    scatter: float | None = None
    """Tabletop: share of the demonstrations that begin with the fingertips anywhere over the table, low between the
    objects or with the gripper shut: where a policy that missed finds itself, and where the usual start never leads.
    0.5 unless given."""
    image_size: int | None = None
    """Side of the pictures in pixels, for `--env.type=metaworld`, which has no flag of its own; 480, as LeRobot
    renders, unless given."""


class Recipe(Protocol):
    """What the episodes of a recording depend on, besides their slot. Picklable."""

    @property
    def image_size(self) -> int: ...

    def to_dict(self) -> dict[str, Any]: ...


class Demonstration(Protocol):
    """T frames: (T, size, size, 3) uint8 a camera, (T, S) float32 states, (T, A) float32 actions."""

    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]

    @property
    def instruction(self) -> str: ...


class Source[R: Recipe, D: Demonstration](Protocol):
    """One simulator with an expert."""

    name: ClassVar[str]
    """For the default folder."""
    robot_type: ClassVar[str]
    fps: ClassVar[int]
    cameras: ClassVar[dict[str, str]]
    """Dataset key of each camera."""
    state_names: ClassVar[list[str]]
    action_names: ClassVar[list[str]]
    packages: ClassVar[tuple[str, ...]]
    """Distributions whose versions the provenance names."""
    tracked: ClassVar[str | None]
    """File beside the dataset with a line of `track` an episode."""

    @property
    def demonstrate_to_file(self) -> Callable[[R, int, Path], int]:
        """Saves the demonstration of a slot. Its module, which workers import, is free of torch and lerobot."""
        ...

    @property
    def load(self) -> Callable[[Path], D]:
        """Reads a demonstration back."""
        ...

    def recipe(self, config: RecordConfig) -> R:
        """The recipe that the flags describe.

        Raises:
            AegisError: flags that this simulator cannot use.
        """
        ...

    def summary(self, demonstration: D) -> dict[str, Any]:
        """What the provenance says of one episode."""
        ...

    def track(self, demonstration: D) -> dict[str, Any]:
        """What `tracked` holds of one episode beside its summary."""
        ...


def noise_of(config: RecordConfig, default: float) -> float:
    """`--noise`, or the simulator's default.

    Raises:
        AegisError: it is negative or stronger than the arm.
    """
    return _share("noise", config.noise, default, "is stronger than the arm")


def scatter_of(config: RecordConfig, default: float) -> float:
    """`--scatter`, or the simulator's default.

    Raises:
        AegisError: it is no share.
    """
    return _share("scatter", config.scatter, default, "is no share")


def _share(flag: str, given: float | None, default: float, too_large: str) -> float:
    if given is None:
        return default
    if given < 0:
        raise AegisError(f"--{flag}={given} is too small: give at least 0.")
    if given > 1:
        raise AegisError(f"--{flag}={given} {too_large}: give at most 1.")
    return given
