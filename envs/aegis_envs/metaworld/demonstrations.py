"""Demonstrations by Meta-World's scripted experts. Runs in worker processes: no torch, no lerobot.

As at the tabletop, an episode depends on the recording's settings and its slot number alone.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.env import MetaworldEnv
from aegis_envs.metaworld.tasks import descriptions
from aegis_envs.recording import episode_files
from aegis_envs.recording.disturbances import Shoves

MAX_ATTEMPTS = 25
CAMERA = "image"
_SEEDS = (2**20, 2**31)
"""Recorded scenes have seeds from here on, so that those of evaluations, which are small, are new to a policy."""
_MAX_OPEN = 5
_open: dict[tuple[str, int], MetaworldEnv] = {}


@dataclass(frozen=True)
class MetaworldRecipe:
    """What the episodes of a recording depend on, besides their slot."""

    tasks: tuple[str, ...]
    seed: int
    noise: float
    image_size: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"simulator": "metaworld", **asdict(self), "tasks": list(self.tasks)}


@dataclass
class MetaworldDemonstration:
    """T observed frames and the expert's action in each.

    `images` holds (T, size, size, 3) uint8 as its only camera, `state` (T, 4), `action` (T, 4) in [-1, 1]. `env_seed`
    is the seed with which the environment shows the scene again.
    """

    task: str
    instruction: str
    env_seed: int
    attempt: int
    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    action: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write one `.npz`, whole or not at all."""
        described = {name: getattr(self, name) for name in ("task", "instruction", "env_seed", "attempt")}
        episode_files.save(path, described, {"state": self.state, "action": self.action, **self.images})

    @classmethod
    def load(cls, path: Path) -> "MetaworldDemonstration":
        described, arrays = episode_files.load(path)
        images = {CAMERA: arrays[CAMERA]}
        return cls(**described, images=images, state=arrays["state"], action=arrays["action"])


def demonstrate(recipe: MetaworldRecipe, slot: int) -> MetaworldDemonstration:
    """The successful demonstration that belongs to `slot`; tasks take turns over the slots.

    Raises:
        MetaworldError: the expert failed `MAX_ATTEMPTS` times, or Meta-World is missing.
        SimulatorError: this machine cannot render.
    """
    task = recipe.tasks[slot % len(recipe.tasks)]
    env = _environment(task, recipe.image_size)
    for attempt in range(MAX_ATTEMPTS):
        rng = np.random.default_rng([list(descriptions()).index(task), recipe.seed, slot, attempt])
        env_seed = int(rng.integers(*_SEEDS))
        actions = _rehearse(env, env_seed, Shoves(recipe.noise, rng))
        if actions is not None:
            return _film(env, env_seed, attempt, *actions)
    raise MetaworldError(
        f"the expert failed {MAX_ATTEMPTS} times in a row on {task} at --noise={recipe.noise}: lower it, or leave "
        f"the task out."
    )


def demonstrate_to_file(recipe: MetaworldRecipe, slot: int, path: Path) -> int:
    """Save the demonstration of `slot` as `path`; returns its number of frames."""
    demonstration = demonstrate(recipe, slot)
    demonstration.save(path)
    return len(demonstration.action)


def _rehearse(
    env: MetaworldEnv, seed: int, shoves: Shoves
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """One try without pictures: the expert's actions and the shoved ones that were carried out, (T, 4) each.

    None unless it succeeds. Simulating costs a twentieth of drawing, so failures are cheap this way.
    """
    env.start(seed)
    wanted: list[NDArray[np.float32]] = []
    done: list[NDArray[np.float32]] = []
    truncated = False
    while not truncated:
        wanted.append(env.expert_action())
        done.append(np.clip(wanted[-1] + np.append(shoves.next(), 0.0), -1, 1).astype(np.float32))
        _, truncated, info = env.advance(done[-1])
        if info["is_success"]:
            return np.stack(wanted), np.stack(done)
    return None


def _film(
    env: MetaworldEnv, seed: int, attempt: int, wanted: NDArray[np.float32], done: NDArray[np.float32]
) -> MetaworldDemonstration:
    """The same episode again, with pictures."""
    env.start(seed)
    seen = []
    for action in done:
        seen.append(env.observe())
        env.advance(action)
    return MetaworldDemonstration(
        task=env.task,
        instruction=env.task_description,
        env_seed=seed,
        attempt=attempt,
        images={CAMERA: np.stack([observation["pixels"] for observation in seen])},
        state=np.stack([observation["agent_pos"] for observation in seen]).astype(np.float32),
        action=wanted,
    )


def _environment(task: str, image_size: int) -> MetaworldEnv:
    """An open environment of this process; those used longest ago are closed, for each holds some 90 MB."""
    env = _open.pop((task, image_size), None) or MetaworldEnv(task, image_size)
    _open[task, image_size] = env
    while len(_open) > _MAX_OPEN:
        _open.pop(next(iter(_open))).close()
    return env
