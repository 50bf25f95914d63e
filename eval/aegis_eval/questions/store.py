"""Many scene images at once: rendered in parallel the first time, read from a cache outside the repository later.

An image is a function of (source, split, seed, index) alone, so any range can be made again, in any order, by any
number of processes.
"""

import fcntl
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import aegis_envs
from aegis_envs.tabletop.scene import Scene
from aegis_envs.tabletop.sim import IMAGE_SIZE, TabletopSim
from aegis_eval.questions.images import QUESTION_SPLITS, SceneImage, render_scene
from aegis_eval.questions.robot_frames import robot_frame
from aegis_policy.support.child_processes import watch_parent, without_main
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_directory
from aegis_policy.support.json_files import read_jsonl


@dataclass(frozen=True)
class Source:
    """Where images come from: `render(sim, split, seed, index)`, and how many of them are one worker's job."""

    render: Callable[[TabletopSim, str, int, int], SceneImage]
    chunk: int


SOURCES = {"scenes": Source(render_scene, 250), "robot": Source(robot_frame, 20)}

_DRAWN_WITH = ("rendering.py", "recording/disturbances.py")
"""What in `aegis_envs` decides how a picture looks, besides the tabletop."""
_Rendered = tuple[NDArray[np.uint8], list[str]]
"""Images of a range and their JSON lines."""


class _Range(NamedTuple):
    """Images `start` to `stop` - 1 of a split: what one worker renders at a time."""

    source: str
    split: str
    seed: int
    start: int
    stop: int


@contextmanager
def rendering() -> Iterator[None]:
    """Where images are rendered: a worker that was killed becomes a sentence.

    Raises:
        AegisError: that sentence.
    """
    try:
        yield
    except BrokenProcessPool as error:
        raise AegisError(
            "a rendering worker was killed (out of memory?): run the same command again, with fewer processes "
            "beside it."
        ) from error


class SceneImages(Sequence[SceneImage]):
    """A stored range of rendered scenes."""

    def __init__(self, directory: Path) -> None:
        self.images: NDArray[np.uint8] = np.load(directory / "images.npy", mmap_mode="r")
        self._records = read_jsonl(directory / "scenes.jsonl")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> SceneImage:  # type: ignore[override]
        record = self._records[index]
        places = {name: (place[0], place[1]) for name, place in record["places"].items()}
        return SceneImage(np.array(self.images[index]), Scene.from_dict(record["scene"]), places)


def scene_images(
    split: str,
    count: int,
    seed: int,
    cache_dir: Path,
    *,
    source: str = "scenes",
    num_workers: int | None = None,
) -> SceneImages:
    """The first `count` images of a split, from one of `SOURCES`.

    Raises:
        ValueError: unknown split.
    """
    if split not in QUESTION_SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(QUESTION_SPLITS)}")
    directory = cache_dir / f"{source}-{split}-{count}-{seed}-{_recipe()}"
    if not directory.is_dir():
        with _alone(directory), rendering():
            if not directory.is_dir():  # nobody made it meanwhile
                _render_all(directory, source, split, count, seed, num_workers or _cores())
    return SceneImages(directory)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold what is to be made, so that processes which want the same pictures wait for one that renders them."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(f".{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when the file is closed, however this process ends
        yield


@cache
def _recipe() -> str:
    """A short hash of the code that draws, moves and renders: pictures of other code are made again."""
    envs, here = Path(aegis_envs.__file__).parent, Path(__file__).parent
    drawn_by = [*(envs / "tabletop").rglob("*.py"), *(envs / name for name in _DRAWN_WITH)]
    sources = {path.relative_to(envs).as_posix(): path for path in drawn_by}
    sources |= {name: here / name for name in ("images.py", "robot_frames.py")}
    digest = hashlib.sha256(version("mujoco").encode())
    for name in sorted(sources):
        digest.update(sources[name].read_bytes())
    return digest.hexdigest()[:12]


def _render_all(directory: Path, source: str, split: str, count: int, seed: int, num_workers: int) -> None:
    chunk = SOURCES[source].chunk
    jobs = [_Range(source, split, seed, start, min(start + chunk, count)) for start in range(0, count, chunk)]
    with atomic_directory(directory) as beside, ExitStack() as stack:
        images = stack.enter_context((beside / "images.npy").open("wb"))
        # In order and not through memory: a full disk would end the process without a word.
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, IMAGE_SIZE, IMAGE_SIZE, 3)}
        np.lib.format.write_array_header_1_0(images, header)
        records = stack.enter_context((beside / "scenes.jsonl").open("w"))
        bar = stack.enter_context(tqdm(total=count, desc=f"rendering {split} {source}", unit="image"))
        rendered = stack.enter_context(closing(_rendered(jobs, num_workers)))
        for pictures, lines in rendered:
            images.write(pictures.tobytes())
            records.writelines(lines)
            bar.update(len(lines))


def _rendered(jobs: Sequence[_Range], num_workers: int) -> Generator[_Rendered]:
    """Every range in order, from worker processes if there is more than one for them to share."""
    processes = min(num_workers, len(jobs))
    if processes == 1:
        yield from map(_render_range, jobs)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, context, initializer=watch_parent) as pool:
        with without_main():  # all workers start here
            chunks = pool.map(_render_range, jobs)
        yield from chunks


def _render_range(job: _Range) -> _Rendered:
    render = SOURCES[job.source].render
    with closing(TabletopSim()) as sim:
        rendered = [render(sim, job.split, job.seed, index) for index in range(job.start, job.stop)]
    records = [json.dumps({"scene": item.scene.to_dict(), "places": item.places}) + "\n" for item in rendered]
    return np.stack([item.image for item in rendered]), records


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/aegis`, by default `~/.cache/aegis`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aegis"
