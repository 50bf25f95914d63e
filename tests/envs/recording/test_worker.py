"""Simulation workers as a recording starts them: light, whichever simulator they run."""

import multiprocessing

import pytest
from running_processes import packages_in

from aegis_envs.recording.episode_files import EpisodeFolder
from aegis_envs.recording.recorder import SOURCES
from aegis_envs.recording.sources import RecordConfig, RecordedMetaworld, RecordedTabletop
from aegis_envs.recording.worker import simulate


@pytest.mark.parametrize(
    "env", [RecordedTabletop(task="reach"), RecordedMetaworld(task="reach-v3", image_size=64)]
)
def test_workers_load_neither_torch_nor_lerobot_whatever_the_command_has_loaded(
    env, fork_server, heavy_main, tmp_path
):
    if isinstance(env, RecordedMetaworld):
        pytest.importorskip("metaworld")
    source, config = SOURCES[type(env)], RecordConfig(env=env, seed=5)
    recipe, folder = source.recipe(config), EpisodeFolder(tmp_path / "data")
    folder.claim(recipe.to_dict())
    others = set(multiprocessing.active_children())
    demonstrations = simulate(source, recipe, episodes=2, folder=folder, num_workers=1)
    next(demonstrations)
    (worker,) = set(multiprocessing.active_children()) - others
    loaded = packages_in(worker.pid)
    demonstrations.close()
    assert "mujoco" in loaded
    assert not loaded & {"torch", "lerobot", "transformers", "pyarrow"}
