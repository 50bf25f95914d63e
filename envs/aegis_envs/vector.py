"""Vectors of environments in worker processes that start when they are needed."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from aegis_envs.errors import SimulatorError
from aegis_policy.support.child_processes import without_main

_SAME_STEP = AutoresetMode.SAME_STEP


class LazyAsyncVectorEnv(VectorEnv):
    """An AsyncVectorEnv whose processes live from the first use until `close`, and again after it.

    `lerobot-eval` makes the vectors of all tasks at once and runs them one after another: started eagerly, fifty tasks
    of ten environments were five hundred processes.
    """

    def __init__(self, factories: Sequence[Callable[[], gym.Env]]) -> None:
        self._factories = list(factories)
        self._running: AsyncVectorEnv | None = None
        probe = self._factories[0]()
        self.num_envs = len(self._factories)
        self.metadata = {**probe.metadata, "autoreset_mode": _SAME_STEP}
        self.render_mode = probe.render_mode
        self.single_observation_space = probe.observation_space
        self.single_action_space = probe.action_space
        self.observation_space = gym.vector.utils.batch_space(probe.observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(probe.action_space, self.num_envs)
        probe.close()

    def _vector(self) -> AsyncVectorEnv:
        if self._running is None:
            with without_main():  # which is lerobot-eval, and imports torch
                self._running = AsyncVectorEnv(
                    self._factories, context="forkserver", autoreset_mode=_SAME_STEP
                )
        return self._running

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._vector().reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        return self._vector().step(actions)

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        return self._vector().call(name, *args, **kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        return self.call(name)

    def close(self, **kwargs: Any) -> None:
        if self._running is not None:
            self._running.close(**kwargs)
            self._running = None


def one_task_at_a_time(max_parallel_tasks: int | None) -> None:
    """Refuse LeRobot's threads that share one policy: its queue and its processors' state are those of one rollout.

    Raises:
        SimulatorError: more than one is asked for, or none.
    """
    if max_parallel_tasks is None or max_parallel_tasks < 1:
        raise SimulatorError(f"--env.max_parallel_tasks={max_parallel_tasks}: leave it at 1.")
    if max_parallel_tasks > 1:
        raise SimulatorError(
            f"--env.max_parallel_tasks={max_parallel_tasks}: LeRobot would run tasks in threads that share one "
            "policy, and hand one task's actions to another: leave it at 1, and start the command once for each "
            "--env.task to evaluate several at a time."
        )


def make_vector(factories: Sequence[Callable[[], gym.Env]], use_async_envs: bool) -> VectorEnv:
    """Worker processes if asked for and there is more than one environment, else one after another in this process."""
    if use_async_envs and len(factories) > 1:
        return LazyAsyncVectorEnv(factories)
    return SyncVectorEnv(factories, autoreset_mode=_SAME_STEP)
