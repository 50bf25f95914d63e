"""Recording: demonstrations from worker processes, staged one file an episode, then written as a dataset.

The staging folder is what makes a recording resumable: it holds finished episodes only, and the dataset takes
its place in one rename.
"""

import json
import multiprocessing
import platform
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import disable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE
from tqdm import tqdm

from aegis_envs.configuration_tabletop import AegisTabletopEnv
from aegis_envs.demonstrations import Demonstration, Recipe, demonstrate_to_file
from aegis_envs.errors import TabletopError
from aegis_envs.recordings import PROVENANCE_FILE, SCENES_FILE
from aegis_envs.sim import CAMERAS
from aegis_policy.errors import AegisError
from aegis_policy.files import atomic_directory, atomic_write

STATE_NAMES = ["x", "y", "z", "gripper", "turn", "shoulder", "elbow", "wrist"]
ACTION_NAMES = ["dx", "dy", "dz", "gripper"]


@dataclass
class RecordConfig:
    """Flags of `aegis-record`."""

    env: EnvConfig = field(default_factory=AegisTabletopEnv)
    root: Path = Path("data/tabletop")
    """Where the dataset goes; a folder that is absent or empty."""
    repo_id: str | None = None
    """Name inside the dataset; `local/<root's name>` unless given."""
    episodes: int = 400
    """Successful demonstrations in all, the tasks taking turns."""
    seed: int = 0
    video: bool = False
    """Store cameras as video (small) instead of images (fast random access)."""
    num_workers: int = 2
    noise: float = 0.5
    """Strength of the shoves the expert has to recover from, from 0 (none) to 1 (the largest action)."""
    scatter: float = 0.5
    """Share of the demonstrations that begin with the fingertips anywhere over the table, low between the objects
    or with the gripper shut: where a policy that missed finds itself, and where the usual start never leads."""


def record(config: RecordConfig) -> None:
    """Record `config.episodes` demonstrations, continuing an interrupted recording with the same flags.

    Raises:
        AegisError: flags that cannot be used, a `root` that holds something else, an interrupted recording
            with other flags, no off-screen rendering.
    """
    recipe = _recipe(config)
    root = config.root
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        _require_same_recording(root, recipe, config)
        print(f"{root} already holds this recording, complete ({config.episodes} episodes).")
        return
    staging = root.parent / f".{root.name}.recording"
    _open_staging(staging, recipe)
    done = sum(_staged(staging, slot).exists() for slot in range(config.episodes))
    if done:
        print(f"continuing: {done} of {config.episodes} episodes are already there")
    try:
        with atomic_directory(root) as beside:
            frames = _write_dataset(config, recipe, _simulated(config, recipe, staging), beside)
    except KeyboardInterrupt:
        done = sum(_staged(staging, slot).exists() for slot in range(config.episodes))
        print(
            f"\n{done} of {config.episodes} episodes kept: run the same command to continue.", file=sys.stderr
        )
        raise
    except TabletopError as error:
        raise AegisError(str(error)) from error
    except BrokenProcessPool as error:
        raise AegisError(
            f"a simulation worker was killed (out of memory?) at --num_workers={config.num_workers}: "
            "run the same command again, with fewer workers, to continue."
        ) from error
    shutil.rmtree(staging)
    print(f"wrote {root} ({config.episodes} episodes, {frames} frames)")
    for name in (PROVENANCE_FILE, SCENES_FILE):
        print(f"wrote {root / name}")


def _recipe(config: RecordConfig) -> Recipe:
    if not isinstance(config.env, AegisTabletopEnv):
        raise AegisError(
            f"--env.type={config.env.type} has no scripted expert here: use --env.type=aegis_tabletop."
        )
    for name, least in (("episodes", 1), ("num_workers", 1), ("seed", 0), ("noise", 0), ("scatter", 0)):
        if getattr(config, name) < least:
            raise AegisError(f"--{name}={getattr(config, name)} is too small: give at least {least}.")
    if config.env.episode_length is not None:
        raise AegisError(
            "--env.episode_length has no meaning here: an expert's episode ends when it succeeds."
        )
    if config.noise > 1:
        raise AegisError(f"--noise={config.noise} is stronger than the arm: give at most 1.")
    if config.scatter > 1:
        raise AegisError(f"--scatter={config.scatter} is no share: give at most 1.")
    return Recipe(
        tasks=tuple(config.env.tasks),
        split=config.env.split or "train",
        seed=config.seed,
        noise=config.noise,
        scatter=config.scatter,
        image_size=config.env.image_size,
    )


def _require_same_recording(root: Path, recipe: Recipe, config: RecordConfig) -> None:
    provenance = root / PROVENANCE_FILE
    if not provenance.is_file():
        raise AegisError(
            f"--root={root} already holds something else than a recording: choose another folder."
        )
    found = json.loads(provenance.read_text())
    asked = {**recipe.to_dict(), "episodes": config.episodes, "video": config.video}
    other = [name for name, value in asked.items() if found.get(name) != value]
    if other:
        raise AegisError(
            f"--root={root} already holds a recording with other {', '.join(other)}: "
            "choose another folder or remove it first."
        )


def _open_staging(staging: Path, recipe: Recipe) -> None:
    """Create the staging folder, or make sure that the one there belongs to `recipe`."""
    file = staging / "recipe.json"
    if not file.exists():
        staging.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as beside:
            beside.write_text(json.dumps(recipe.to_dict(), indent=2))
        return
    found = json.loads(file.read_text())
    other = [name for name, value in recipe.to_dict().items() if found.get(name) != value]
    if other:
        raise AegisError(
            f"{staging} holds an interrupted recording with other {', '.join(other)}: "
            "run that command again to finish it, or remove the folder."
        )


def _staged(staging: Path, slot: int) -> Path:
    return staging / f"episode_{slot:06d}.npz"


def _simulated(config: RecordConfig, recipe: Recipe, staging: Path) -> Iterator[Demonstration]:
    """The demonstrations in slot order, each as soon as it is staged; workers run ahead of the reader."""
    slots = range(config.episodes)
    missing = [slot for slot in slots if not _staged(staging, slot).exists()]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(config.num_workers, context, initializer=_ignore_interrupt) as pool:
        try:
            running = {
                slot: pool.submit(demonstrate_to_file, recipe, slot, _staged(staging, slot))
                for slot in missing
            }
            for slot in slots:
                if slot in running:
                    running[slot].result()
                yield Demonstration.load(_staged(staging, slot))
        finally:
            pool.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    # The parent decides what happens on Ctrl-C; workers finish the episode they are in.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _features(recipe: Recipe, video: bool) -> dict[str, dict[str, Any]]:
    image = {
        "dtype": "video" if video else "image",
        "shape": (recipe.image_size, recipe.image_size, 3),
        "names": ["height", "width", "channels"],
    }
    return {
        **{f"{OBS_IMAGES}.{camera}": image for camera in CAMERAS},
        OBS_STATE: {"dtype": "float32", "shape": (len(STATE_NAMES),), "names": STATE_NAMES},
        ACTION: {"dtype": "float32", "shape": (len(ACTION_NAMES),), "names": ACTION_NAMES},
    }


def _write_dataset(
    config: RecordConfig, recipe: Recipe, demonstrations: Iterator[Demonstration], folder: Path
) -> int:
    """Write the demonstrations into `folder` as a LeRobotDataset with its side files; returns the frames."""
    disable_progress_bars()  # one bar for the recording, not one more for each episode
    folder.rmdir()  # LeRobot insists on creating the folder itself
    dataset = LeRobotDataset.create(
        repo_id=config.repo_id or f"local/{config.root.name}",
        fps=config.env.fps,
        features=_features(recipe, config.video),
        root=folder,
        robot_type="aegis_tabletop",
        use_videos=config.video,
    )
    described = []
    try:
        with (folder / SCENES_FILE).open("w") as scenes:
            bar = tqdm(demonstrations, total=config.episodes, desc="recording", unit="episode")
            for index, demonstration in enumerate(bar):
                for frame in _frames(demonstration):
                    dataset.add_frame(frame)
                # Encoding cameras in parallel would fork a process that has threads.
                dataset.save_episode(parallel_encoding=False)
                summary = _summary(demonstration, index)
                scenes.write(json.dumps({**summary, **_scene_track(demonstration)}) + "\n")
                described.append(summary)
    finally:
        # Left to the garbage collector, an interrupted dataset would write itself into the removed folder.
        dataset.finalize()
    provenance = {
        "command": shlex.join(sys.argv),
        **recipe.to_dict(),
        "episodes": config.episodes,
        "video": config.video,
        "frames": dataset.num_frames,
        "versions": {name: version(name) for name in ("lerobot_policy_aegis", "lerobot", "mujoco", "numpy")},
        "python": platform.python_version(),
        "per_episode": described,
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1))
    return int(dataset.num_frames)


def _frames(demonstration: Demonstration) -> Iterator[dict[str, Any]]:
    for step in range(len(demonstration.action)):
        yield {
            **{f"{OBS_IMAGES}.{name}": images[step] for name, images in demonstration.images.items()},
            OBS_STATE: demonstration.state[step],
            ACTION: demonstration.action[step],
            "task": demonstration.episode.instruction,
        }


def _summary(demonstration: Demonstration, index: int) -> dict[str, Any]:
    episode = demonstration.episode
    return {
        "episode_index": index,
        "attempt": demonstration.attempt,
        "task": episode.task,
        "split": episode.split,
        "target": episode.target,
        "zone": episode.zone,
        "instruction": episode.instruction,
        "length": len(demonstration.action),
    }


def _scene_track(demonstration: Demonstration) -> dict[str, Any]:
    return {
        "scene": demonstration.episode.scene.to_dict(),
        "objects": np.round(demonstration.objects, 4).astype(float).tolist(),
    }
