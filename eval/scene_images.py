"""Rendered tabletop scenes for questions: the front image, the scene it shows, and where each thing is in it.

A scene is a function of (split, seed, index) alone, so any range of any split can be made again, in any order, by any
number of processes. Light, camera, tints and the arm's pose vary; every object is visible.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_envs.arm import WORKSPACE_HIGH, WORKSPACE_LOW
from aegis_envs.scene import (
    ALL_PAIRS,
    COLORS,
    MAX_OBJECTS,
    OBJECT_X,
    OBJECT_Y,
    Bowl,
    Pair,
    Scene,
    SceneObject,
    Zone,
    sample_scene,
)
from aegis_envs.sim import IMAGE_SIZE, TabletopSim
from aegis_policy.files import atomic_directory

SPLITS = {"train": 0, "val": 1, "test": 2}
_LEAST_VISIBLE_PIXELS = 24
_CHUNK = 250
_ALIKE = 0.5
"""How often an object after the first has a colour or shape in common with one before it."""
_FORMAT = 3
"""Raise when scenes or pictures of the same (split, seed, index) change, so that caches are made again."""

_Rendered = tuple[NDArray[np.uint8], list[str]]
"""Images of a range of scenes and their JSON lines."""


@dataclass(frozen=True)
class SceneImage:
    """`image` (96, 96, 3) uint8 of the front camera; `places` maps each item's name to (u, v) in [0, 1]."""

    image: NDArray[np.uint8]
    scene: Scene
    places: dict[str, tuple[float, float]]

    def place(self, item: SceneObject | Zone | Bowl) -> tuple[float, float]:
        """Image position of an item of the scene: u to the right, v downwards, both in [0, 1]."""
        return self.places[_key(item)]


class SceneImages(Sequence[SceneImage]):
    """A stored range of rendered scenes."""

    def __init__(self, directory: Path) -> None:
        self.images: NDArray[np.uint8] = np.load(directory / "images.npy", mmap_mode="r")
        self._records = [json.loads(line) for line in (directory / "scenes.jsonl").read_text().splitlines()]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> SceneImage:  # type: ignore[override]
        record = self._records[index]
        places = {name: (place[0], place[1]) for name, place in record["places"].items()}
        return SceneImage(np.array(self.images[index]), Scene.from_dict(record["scene"]), places)


def scene_images(
    split: str, count: int, seed: int, cache_dir: Path, *, num_workers: int | None = None
) -> SceneImages:
    """The first `count` scenes of a split, rendered in parallel the first time and read from the cache afterwards.

    Raises:
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    name = hashlib.sha256(f"{_FORMAT}/{split}/{count}/{seed}".encode()).hexdigest()[:12]
    directory = cache_dir / f"scenes-{split}-{count}-{name}"
    if not directory.is_dir():
        _render_all(directory, split, count, seed, num_workers or _cores())
    return SceneImages(directory)


def render_scene(sim: TabletopSim, split: str, seed: int, index: int) -> SceneImage:
    """Draw and render scene `index` of a split."""
    rng = np.random.default_rng([SPLITS[split], seed, index])
    while True:
        scene = _draw(rng)
        sim.set_scene(scene)
        sim.randomize_look(rng)
        sim.set_arm(rng.uniform(WORKSPACE_LOW, WORKSPACE_HIGH), float(rng.uniform()))
        visible = sim.visible_pixels("front", IMAGE_SIZE)
        if min(visible) >= _LEAST_VISIBLE_PIXELS:
            return SceneImage(sim.render("front", IMAGE_SIZE), scene, image_places(sim, scene))


def image_places(sim: TabletopSim, scene: Scene) -> dict[str, tuple[float, float]]:
    """Where the front camera sees every item of `scene`, by name: (u, v) in [0, 1]."""
    camera = sim.model.camera("front").id
    position, axes = sim.data.cam_xpos[camera], sim.data.cam_xmat[camera].reshape(3, 3)
    focal = 0.5 / np.tan(np.deg2rad(sim.model.cam_fovy[camera]) / 2)
    items: list[SceneObject | Zone | Bowl] = [*scene.objects, *scene.zones]
    if scene.bowl is not None:
        items.append(scene.bowl)
    places = {}
    for item in items:
        height = 0.025 if isinstance(item, SceneObject) else 0.0
        x, y, z = axes.T @ (np.array([item.x, item.y, height]) - position)
        places[_key(item)] = (round(0.5 + focal * x / -z, 4), round(0.5 - focal * y / -z, 4))
    return places


def _key(item: SceneObject | Zone | Bowl) -> str:
    return "bowl" if isinstance(item, Bowl) else item.name


def _draw(rng: np.random.Generator) -> Scene:
    colors = rng.permutation(list(COLORS))[: int(rng.integers(0, 3))]
    zones: list[Zone] = []
    for color in colors:
        x, y = (float(rng.uniform(*side)) for side in (OBJECT_X, OBJECT_Y))
        if all(np.hypot(x - zone.x, y - zone.y) > 0.16 for zone in zones):
            zones.append(Zone(str(color), round(x, 4), round(y, 4)))
    bowl = None
    if rng.uniform() < 0.3:
        x, y = (float(rng.uniform(*side)) for side in (OBJECT_X, OBJECT_Y))
        if all(np.hypot(x - zone.x, y - zone.y) > 0.16 for zone in zones):
            bowl = Bowl(round(x, 4), round(y, 4))
    pairs = _pairs(rng)
    scene = sample_scene(rng, (len(pairs), len(pairs)), include=pairs, bowl=bowl)
    # Objects may stand on zones, which are only marks on the table, unless they would melt into them.
    seen_zones = tuple(zone for zone in zones if not any(_melts(thing, zone) for thing in scene.objects))
    return Scene(scene.objects, seen_zones, bowl)


def _pairs(rng: np.random.Generator) -> list[Pair]:
    """One to `MAX_OBJECTS` colour-shape pairs, all different; half of the later ones share a colour or shape with
    one before, as the distractors of the robot's scenes do."""
    pairs: list[Pair] = []
    for _ in range(int(rng.integers(1, MAX_OBJECTS + 1))):
        candidates = [pair for pair in ALL_PAIRS if pair not in pairs]
        if pairs and rng.uniform() < _ALIKE:
            like = pairs[int(rng.integers(len(pairs)))]
            column = int(rng.integers(2))
            candidates = [pair for pair in candidates if pair[column] == like[column]] or candidates
        pairs.append(candidates[int(rng.integers(len(candidates)))])
    return pairs


def _melts(thing: SceneObject, zone: Zone) -> bool:
    return thing.color == zone.color and bool(np.hypot(thing.x - zone.x, thing.y - zone.y) < 0.12)


def _render_all(directory: Path, split: str, count: int, seed: int, num_workers: int) -> None:
    jobs = [(split, seed, start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
    with atomic_directory(directory) as beside, ExitStack() as stack:
        images = np.lib.format.open_memmap(
            beside / "images.npy", mode="w+", dtype=np.uint8, shape=(count, IMAGE_SIZE, IMAGE_SIZE, 3)
        )
        records = stack.enter_context((beside / "scenes.jsonl").open("w"))
        bar = stack.enter_context(tqdm(total=count, desc=f"rendering {split} scenes", unit="scene"))
        chunks: Iterable[_Rendered] = map(_render_range, jobs)
        if min(num_workers, len(jobs)) > 1:
            context = multiprocessing.get_context("forkserver")
            workers = stack.enter_context(ProcessPoolExecutor(min(num_workers, len(jobs)), context))
            chunks = workers.map(_render_range, jobs)
        for (_, _, start, stop), (pictures, lines) in zip(jobs, chunks, strict=True):
            images[start:stop] = pictures
            records.writelines(lines)
            bar.update(stop - start)
        images.flush()


def _render_range(job: tuple[str, int, int, int]) -> _Rendered:
    split, seed, start, stop = job
    sim = TabletopSim()
    try:
        rendered = [render_scene(sim, split, seed, index) for index in range(start, stop)]
    finally:
        sim.close()
    records = [json.dumps({"scene": item.scene.to_dict(), "places": item.places}) + "\n" for item in rendered]
    return np.stack([item.image for item in rendered]), records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/aegis`, by default `~/.cache/aegis`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aegis"
