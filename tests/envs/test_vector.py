"""Vectors of environments: their workers are light, and there only while they are used."""

from functools import partial

import numpy as np
import pytest
from running_processes import packages_in

from aegis_envs.libero.configuration import AegisLiberoEnv
from aegis_envs.metaworld.configuration import AegisMetaworldEnv
from aegis_envs.tabletop.configuration import AegisTabletopEnv
from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.vector import LazyAsyncVectorEnv
from aegis_policy.support.errors import AegisError


def test_workers_load_neither_torch_nor_lerobot_whatever_the_command_has_loaded(fork_server, heavy_main):
    vector = LazyAsyncVectorEnv([partial(TabletopEnv, "reach")] * 2)
    vector.reset(seed=[3, 4])
    loaded = [packages_in(process.pid) for process in vector._running.processes]
    vector.step(np.zeros((2, 4), np.float32))
    vector.close()
    assert len(loaded) == 2 and all("mujoco" in each for each in loaded)
    assert not set.union(*loaded) & {"torch", "lerobot", "transformers", "pyarrow"}


@pytest.mark.parametrize("config", [AegisTabletopEnv, AegisMetaworldEnv, AegisLiberoEnv])
def test_tasks_in_threads_of_one_policy_are_refused_before_anything_is_loaded(config):
    with pytest.raises(AegisError, match=r"--env\.max_parallel_tasks=2: .* leave it at 1"):
        config(max_parallel_tasks=2)
