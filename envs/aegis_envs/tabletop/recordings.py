"""Reading back what `aegis-record` wrote beside the dataset: which scene each recorded frame shows."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.scene import Scene

PROVENANCE_FILE = "recording.json"
SCENES_FILE = "scenes.jsonl"


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of a recording.

    `objects` is (T, objects, 4): x, y, z in metres and yaw in radians per frame, in scene order.
    """

    index: int
    task: str
    split: str
    target: str
    zone: str | None
    instruction: str
    scene: Scene
    objects: NDArray[np.float64]

    def scene_at(self, frame: int) -> Scene:
        """The scene as frame `frame` shows it."""
        return self.scene.moved(self.objects[frame])


def read_episodes(root: Path | str) -> Iterator[RecordedEpisode]:
    """The episodes of the recording in `root`, in dataset order.

    Raises:
        TabletopError: `root` was not written by `aegis-record`.
    """
    path = Path(root) / SCENES_FILE
    if not path.is_file():
        raise TabletopError(f"{path} is missing: point to a dataset that aegis-record wrote at the tabletop.")
    with path.open() as lines:
        for line in lines:
            item = json.loads(line)
            yield RecordedEpisode(
                index=item["episode_index"],
                task=item["task"],
                split=item["split"],
                target=item["target"],
                zone=item["zone"],
                instruction=item["instruction"],
                scene=Scene.from_dict(item["scene"]),
                objects=np.array(item["objects"]),
            )
