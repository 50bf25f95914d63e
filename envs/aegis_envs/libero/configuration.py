"""LeRobot's LIBERO behind a check: `--env.type=aegis_libero`."""

from dataclasses import dataclass

import gymnasium as gym
from lerobot.envs.configs import EnvConfig, LiberoEnv

from aegis_envs.libero.preflight import preflight, write_config
from aegis_envs.vector import one_task_at_a_time
from aegis_policy.support.errors import AegisError


@EnvConfig.register_subclass("aegis_libero")
@dataclass
class AegisLiberoEnv(LiberoEnv):
    """What `--env.type=libero` takes and does, but what is missing is said before anything is asked or loaded."""

    def __post_init__(self) -> None:
        one_task_at_a_time(self.max_parallel_tasks)
        super().__post_init__()

    def create_envs(
        self, n_envs: int, use_async_envs: bool = False
    ) -> dict[str, dict[int, gym.vector.VectorEnv]]:
        """LeRobot's environments, a suite for each name in `task`.

        Raises:
            AegisError: LIBERO cannot run here; says why and what to do.
        """
        suites = [name.strip() for name in (self.task or "").split(",")]
        errors = [str(finding) for finding in preflight(suites) if finding.status == "error"]
        if errors:
            raise AegisError(f"--env.type=aegis_libero cannot run: {'. '.join(errors)}.")
        write_config()
        envs: dict[str, dict[int, gym.vector.VectorEnv]] = super().create_envs(n_envs, use_async_envs)
        return envs
