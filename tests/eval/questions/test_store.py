"""Rendered pictures: workers are light, one a core, and pictures of other code are made again."""

import multiprocessing
import os
import shutil
import sys
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from full_disk import largest_file
from running_processes import packages_in

import aegis_envs
from aegis_eval.questions import store
from aegis_policy.support.errors import AegisError

JOBS = [store._Range("scenes", "test", 0, start, start + 1) for start in range(4)]


def test_rendering_workers_load_neither_torch_nor_lerobot_whatever_the_command_has_loaded(
    fork_server: None, heavy_main: ModuleType
) -> None:
    others = set(multiprocessing.active_children())
    with closing(store._rendered(JOBS, num_workers=2)) as rendered:
        next(rendered)
        workers = set(multiprocessing.active_children()) - others
        assert len(workers) == 2
        until = time.monotonic() + 30  # one may still be starting while the other has rendered
        while not all("mujoco" in packages_in(worker.pid) for worker in workers):
            assert time.monotonic() < until
            time.sleep(0.05)
        loaded = [packages_in(worker.pid) for worker in workers]
    assert not set.union(*loaded) & {"torch", "lerobot", "transformers", "pyarrow"}
    assert sys.modules["__main__"] is heavy_main


def test_there_is_a_worker_for_each_core_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5})
    used: list[int] = []
    rendered = store._rendered
    monkeypatch.setattr(
        store, "_rendered", lambda jobs, workers: used.append(workers) or rendered(jobs, num_workers=1)
    )
    store.scene_images("test", 2, 0, tmp_path)
    assert used == [3]
    store.scene_images("test", 3, 0, tmp_path, num_workers=1)
    assert used == [3, 1]


def test_pictures_that_do_not_fit_on_the_disk_end_with_a_sentence_and_are_made_when_there_is_room(
    tmp_path: Path,
) -> None:
    with largest_file(60_000), pytest.raises(AegisError, match=r"cannot be written \(File too large\): "):
        store.scene_images("test", 3, 0, tmp_path, num_workers=1)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
    pictures = store.scene_images("test", 3, 0, tmp_path, num_workers=1)
    assert len(pictures) == len(pictures.images) == 3 and pictures[2].image.std() > 0


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of what renders, in place of it: `aegis_envs/` and `questions/`."""
    for name, module in (("aegis_envs", aegis_envs), ("questions", store)):
        source = Path(str(module.__file__)).parent
        shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        monkeypatch.setattr(module, "__file__", str(tmp_path / name / Path(str(module.__file__)).name))
    return tmp_path


def recipe() -> str:
    return store._recipe.__wrapped__()


def test_pictures_do_not_depend_on_where_the_packages_lie(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = recipe()
    monkeypatch.undo()
    assert recipe() == there


def test_a_change_of_what_draws_makes_pictures_again_and_one_elsewhere_does_not(packages: Path) -> None:
    tabletop = {str(path.relative_to(packages)) for path in packages.glob("aegis_envs/tabletop/*.py")}
    nested = packages / "aegis_envs" / "tabletop" / "parts" / "drawer.py"
    nested.parent.mkdir()
    nested.write_text("")
    before = recipe()
    changing = set()
    for path in sorted(packages.rglob("*.py")):
        content = path.read_bytes()
        path.write_bytes(content + b"# changed")
        if recipe() != before:
            changing.add(str(path.relative_to(packages)))
        path.write_bytes(content)
    assert len(tabletop) > 8 and recipe() == before
    assert changing == {
        *tabletop,
        "aegis_envs/tabletop/parts/drawer.py",
        "aegis_envs/rendering.py",
        "aegis_envs/recording/disturbances.py",
        "questions/images.py",
        "questions/robot_frames.py",
    }
