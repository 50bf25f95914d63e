"""The tabletop as LeRobot loads environments of the hub, from the cache of a repository that holds `envs/hub`."""

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from lerobot.envs.factory import make_env

from aegis_envs.tabletop.configuration import AegisTabletopEnv

HUB = Path(__file__).parents[3] / "envs" / "hub"


def test_lerobot_loads_the_tabletop_from_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository, commit = tmp_path / "models--me--aegis-tabletop", "0" * 40
    shutil.copytree(HUB, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    found = make_env("me/aegis-tabletop", n_envs=2, trust_remote_code=True, hub_cache_dir=str(tmp_path))
    own = AegisTabletopEnv().create_envs(2)
    assert found.keys() == own.keys()
    for task, vectors in found.items():
        (vector,), (same,) = vectors.values(), own[task].values()
        seen, expected = (each.reset(seed=[3, 4])[0]["agent_pos"] for each in (vector, same))
        np.testing.assert_array_equal(seen, expected)
        vector.close()
        same.close()
