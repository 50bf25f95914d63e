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
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import MetaworldEnv as LeRobotMetaworldEnv
from lerobot.utils.constants import ACTION, OBS_STATE
from tqdm import tqdm

from aegis_envs.errors import SimulatorError
from aegis_envs.metaworld.configuration import AegisMetaworldEnv
from aegis_envs.metaworld.source import MetaworldSource
from aegis_envs.recording.sources import Demonstration, Recipe, RecordConfig, Source
from aegis_envs.tabletop.configuration import AegisTabletopEnv
from aegis_envs.tabletop.recordings import PROVENANCE_FILE
from aegis_envs.tabletop.source import TabletopSource
from aegis_policy.support.child_processes import watch_parent
from aegis_policy.support.cli import require_at_least
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_directory, atomic_write

SOURCES: dict[type[EnvConfig], Source[Any, Any]] = {
    AegisTabletopEnv: TabletopSource(),
    AegisMetaworldEnv: MetaworldSource(),
    LeRobotMetaworldEnv: MetaworldSource(),
}
"""The simulators whose experts are recorded, by the class behind `--env.type`."""


def record(config: RecordConfig) -> None:
    """Record `config.episodes` demonstrations, continuing an interrupted recording with the same flags.

    Raises:
        AegisError: flags that cannot be used, a `root` that holds something else, an interrupted recording
            with other flags, no off-screen rendering.
    """
    source = SOURCES.get(type(config.env))
    if source is None:
        known = ", ".join(EnvConfig.get_choice_name(known) for known in SOURCES)
        raise AegisError(f"--env.type={config.env.type} has no scripted expert here: choose from {known}.")
    require_at_least(config, episodes=1, num_workers=1, seed=0)
    recipe = source.recipe(config)
    root = config.root or Path("data") / source.name
    config = replace(config, root=root, repo_id=config.repo_id or f"local/{root.name}")
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
            demonstrations = _simulated(source, config, recipe, staging)
            frames = _write_dataset(source, config, recipe, demonstrations, beside)
    except KeyboardInterrupt:
        done = sum(_staged(staging, slot).exists() for slot in range(config.episodes))
        print(
            f"\n{done} of {config.episodes} episodes kept: run the same command to continue.", file=sys.stderr
        )
        raise
    except SimulatorError as error:
        raise AegisError(str(error)) from error
    except BrokenProcessPool as error:
        raise AegisError(
            f"a simulation worker was killed (out of memory?) at --num_workers={config.num_workers}: "
            "run the same command again, with fewer workers, to continue."
        ) from error
    shutil.rmtree(staging)
    print(f"wrote {root} ({config.episodes} episodes, {frames} frames)")
    for name in (PROVENANCE_FILE, source.tracked):
        if name is not None:
            print(f"wrote {root / name}")


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


def _simulated(
    source: Source[Any, Any], config: RecordConfig, recipe: Recipe, staging: Path
) -> Iterator[Demonstration]:
    """The demonstrations in slot order, each as soon as it is staged; workers run ahead of the reader."""
    slots = range(config.episodes)
    missing = [slot for slot in slots if not _staged(staging, slot).exists()]
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(config.num_workers, context, initializer=_begin_work) as pool:
        try:
            running = {
                slot: pool.submit(source.demonstrate_to_file, recipe, slot, _staged(staging, slot))
                for slot in missing
            }
            for slot in slots:
                if slot in running:
                    running[slot].result()
                yield source.load(_staged(staging, slot))
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_work() -> None:
    watch_parent()
    # The parent decides what happens on Ctrl-C; workers finish the episode they are in.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _features(source: Source[Any, Any], recipe: Recipe, video: bool) -> dict[str, dict[str, Any]]:
    image = {
        "dtype": "video" if video else "image",
        "shape": (recipe.image_size, recipe.image_size, 3),
        "names": ["height", "width", "channels"],
    }
    names = {OBS_STATE: source.state_names, ACTION: source.action_names}
    return {
        **dict.fromkeys(source.cameras.values(), image),
        **{key: {"dtype": "float32", "shape": (len(of),), "names": of} for key, of in names.items()},
    }


def _write_dataset(
    source: Source[Any, Any],
    config: RecordConfig,
    recipe: Recipe,
    demonstrations: Iterator[Demonstration],
    folder: Path,
) -> int:
    """Write the demonstrations into `folder` as a LeRobotDataset with its side files; returns the frames."""
    disable_progress_bars()  # one bar for the recording, not one more for each episode
    folder.rmdir()  # LeRobot insists on creating the folder itself
    dataset = LeRobotDataset.create(
        repo_id=config.repo_id,
        fps=source.fps,
        features=_features(source, recipe, config.video),
        root=folder,
        robot_type=source.robot_type,
        use_videos=config.video,
    )
    described = []
    with ExitStack() as stack:
        # Left to the garbage collector, an interrupted dataset would write itself into the removed folder.
        stack.callback(dataset.finalize)
        tracks = stack.enter_context((folder / source.tracked).open("w")) if source.tracked else None
        bar = tqdm(demonstrations, total=config.episodes, desc="recording", unit="episode")
        for index, demonstration in enumerate(bar):
            for frame in _frames(source, demonstration):
                dataset.add_frame(frame)
            # Encoding cameras in parallel would fork a process that has threads.
            dataset.save_episode(parallel_encoding=False)
            summary = {
                "episode_index": index,
                **source.summary(demonstration),
                "length": len(demonstration.action),
            }
            if tracks is not None:
                tracks.write(json.dumps({**summary, **source.track(demonstration)}) + "\n")
            described.append(summary)
    packages = ("lerobot_policy_aegis", "lerobot", *source.packages, "numpy")
    provenance = {
        "command": shlex.join(sys.argv),
        **recipe.to_dict(),
        "episodes": config.episodes,
        "video": config.video,
        "frames": dataset.num_frames,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "per_episode": described,
    }
    (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=1))
    return int(dataset.num_frames)


def _frames(source: Source[Any, Any], demonstration: Demonstration) -> Iterator[dict[str, Any]]:
    for step in range(len(demonstration.action)):
        yield {
            **{key: demonstration.images[camera][step] for camera, key in source.cameras.items()},
            OBS_STATE: demonstration.state[step],
            ACTION: demonstration.action[step],
            "task": demonstration.instruction,
        }
