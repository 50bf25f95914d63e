"""Writing demonstrations as a LeRobotDataset, with a file beside it that says how every episode came to be."""

import json
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_STATE
from tqdm import tqdm

from aegis_envs.recording.sources import PROVENANCE_FILE, Demonstration, Recipe, RecordConfig, Source
from aegis_policy.support.json_files import write_json


def write_dataset(
    source: Source[Any, Any],
    config: RecordConfig,
    recipe: Recipe,
    demonstrations: Iterator[Demonstration],
    folder: Path,
) -> int:
    """Write the demonstrations into `folder`, which is empty; returns the number of frames."""
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
    frames = int(dataset.num_frames)
    provenance = _provenance(source, config, recipe) | {"frames": frames, "per_episode": described}
    write_json(folder / PROVENANCE_FILE, provenance, indent=1)
    return frames


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


def _frames(source: Source[Any, Any], demonstration: Demonstration) -> Iterator[dict[str, Any]]:
    for step in range(len(demonstration.action)):
        yield {
            **{key: demonstration.images[camera][step] for camera, key in source.cameras.items()},
            OBS_STATE: demonstration.state[step],
            ACTION: demonstration.action[step],
            "task": demonstration.instruction,
        }


def _provenance(source: Source[Any, Any], config: RecordConfig, recipe: Recipe) -> dict[str, Any]:
    packages = ("lerobot_policy_aegis", "lerobot", *source.packages, "numpy")
    return {
        "command": shlex.join(sys.argv),
        **recipe.to_dict(),
        "episodes": config.episodes,
        "video": config.video,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
    }
