"""Expert demonstrations as arrays, one file an episode. Runs in worker processes: no torch, no lerobot.

An episode depends on the recording's settings and its slot number alone, so the same data come out whatever
the number of workers, in whatever order they finish, and however often the recording was interrupted.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import TabletopError
from aegis_envs.recording import episode_files
from aegis_envs.recording.disturbances import Shoves
from aegis_envs.tabletop.arm import WORKSPACE_HIGH, WORKSPACE_LOW
from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.episodes import SPLITS, sample_episode
from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.scene import Scene
from aegis_envs.tabletop.sim import CAMERAS
from aegis_envs.tabletop.tasks import TASKS, Episode

MAX_ATTEMPTS = 25
SCATTER_Z = (0.03, 0.16)
"""Heights of scattered starts, metres: from between the objects to where the expert travels."""
_ABOVE_OBJECTS = 0.075
_BESIDE_OBJECTS = 0.085
_BESIDE_BOWL = 0.14


@dataclass(frozen=True)
class Recipe:
    """What the episodes of a recording depend on, besides their slot."""

    tasks: tuple[str, ...]
    split: str
    seed: int
    noise: float
    scatter: float
    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**asdict(self), "tasks": list(self.tasks)}


@dataclass
class Demonstration:
    """T observed frames and the expert's action in each.

    `images` holds (T, size, size, 3) uint8 a camera, `state` (T, 8), `action` (T, 4) in [-1, 1], `objects`
    (T, objects, 4): x, y, z in metres and yaw in radians of every object of the scene, in scene order.
    """

    episode: Episode
    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    objects: NDArray[np.float32]
    attempt: int

    @property
    def instruction(self) -> str:
        """The sentence the policy hears."""
        return self.episode.instruction

    def scene_at(self, frame: int) -> Scene:
        """The scene as frame `frame` shows it."""
        return self.episode.scene.moved(self.objects[frame])

    def save(self, path: Path) -> None:
        """Write one `.npz`, whole or not at all."""
        episode_files.save(
            path,
            {"episode": self.episode.to_dict(), "attempt": self.attempt},
            {"state": self.state, "action": self.action, "objects": self.objects, **self.images},
        )

    @classmethod
    def load(cls, path: Path) -> "Demonstration":
        described, arrays = episode_files.load(path)
        kept = described["episode"]
        return cls(
            episode=Episode(
                **{**kept, "scene": Scene.from_dict(kept["scene"]), "start": tuple(kept["start"])}
            ),
            images={camera: arrays[camera] for camera in CAMERAS},
            state=arrays["state"],
            action=arrays["action"],
            objects=arrays["objects"],
            attempt=described["attempt"],
        )


def demonstrate(recipe: Recipe, slot: int) -> Demonstration:
    """The successful demonstration that belongs to `slot`; tasks take turns over the slots.

    Raises:
        TabletopError: the expert failed `MAX_ATTEMPTS` times.
        SimulatorError: this machine cannot render.
    """
    task = recipe.tasks[slot % len(recipe.tasks)]
    env = _environment(task, recipe.split, recipe.image_size)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng(
            [list(SPLITS).index(recipe.split), list(TASKS).index(task), recipe.seed, slot, attempt]
        )
        episode = sample_episode(task, recipe.split, rng)
        demonstration = _attempt(env, episode, rng, recipe, attempt)
        if demonstration is not None:
            return demonstration
    raise TabletopError(
        f"the expert failed {MAX_ATTEMPTS} times in a row on {task} at --noise={recipe.noise}: lower it."
    )


def demonstrate_to_file(recipe: Recipe, slot: int, path: Path) -> int:
    """Save the demonstration of `slot` as `path`; returns its number of frames."""
    demonstration = demonstrate(recipe, slot)
    demonstration.save(path)
    return len(demonstration.action)


def _attempt(
    env: TabletopEnv, episode: Episode, rng: np.random.Generator, recipe: Recipe, attempt: int
) -> Demonstration | None:
    """One try; None unless it succeeds. Now and then the arm is shoved; the kept actions are the expert's."""
    env.start(episode)
    if recipe.scatter and rng.random() < recipe.scatter:
        env.sim.set_arm(_scattered_start(episode.scene, rng), float(rng.integers(2)))
    shoves = Shoves(recipe.noise, rng)
    frames: list[tuple[dict[str, Any], NDArray[np.float32], NDArray[np.float32]]] = []
    for _ in range(env._max_episode_steps):
        action = expert_action(env.sim, episode)
        frames.append((env.observe(), action, _object_poses(env)))
        outcome = env.advance(action + np.append(shoves.next(), 0.0))
        if outcome == "success":
            return Demonstration(
                episode=episode,
                images={name: np.stack([frame[0]["pixels"][name] for frame in frames]) for name in CAMERAS},
                state=np.stack([frame[0]["agent_pos"] for frame in frames]),
                action=np.stack([frame[1] for frame in frames]),
                objects=np.stack([frame[2] for frame in frames]),
                attempt=attempt,
            )
        if outcome is not None:
            return None
    return None


def _scattered_start(scene: Scene, rng: np.random.Generator) -> NDArray[np.float64]:
    """Fingertips (3,) anywhere in the workspace where the gripper touches nothing."""
    taken = [(thing.x, thing.y, _BESIDE_OBJECTS) for thing in scene.objects]
    if scene.bowl is not None:
        taken.append((scene.bowl.x, scene.bowl.y, _BESIDE_BOWL))
    low, high = WORKSPACE_LOW.copy(), WORKSPACE_HIGH.copy()
    low[2], high[2] = SCATTER_Z
    while True:
        start: NDArray[np.float64] = rng.uniform(low, high)
        if start[2] > _ABOVE_OBJECTS or all(
            np.hypot(x - start[0], y - start[1]) > clearance for x, y, clearance in taken
        ):
            return start


def _object_poses(env: TabletopEnv) -> NDArray[np.float32]:
    """(objects, 4): x, y, z, yaw now."""
    scene = env.sim.current_scene()
    return np.array(
        [(*env.sim.object_position(slot), thing.yaw) for slot, thing in enumerate(scene.objects)], np.float32
    )


@lru_cache(maxsize=len(TASKS))
def _environment(task: str, split: str, image_size: int) -> TabletopEnv:
    return TabletopEnv(task, split, image_size)
