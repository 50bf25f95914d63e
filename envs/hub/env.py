"""The tabletop for LeRobot's EnvHub: `make_env("OWNER/REPOSITORY", trust_remote_code=True)`, where this file lies.

All tasks, `test` scenes; with `cfg` of type `aegis_tabletop` what that says. `lerobot_policy_aegis` must be installed.
"""

from typing import Any

from aegis_envs.tabletop.configuration import AegisTabletopEnv


def make_env(n_envs: int = 1, use_async_envs: bool = False, cfg: Any = None) -> dict[str, dict[int, Any]]:
    """`{task: {0: vector of n_envs}}`, as LeRobot wants it."""
    config = cfg if isinstance(cfg, AegisTabletopEnv) else AegisTabletopEnv()
    return config.create_envs(n_envs, use_async_envs)
