"""The tabletop as a benchmark of vla-eval, for its own runner to step."""

from typing import Any, ClassVar

import numpy as np
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.specs import IMAGE_RGB, LANGUAGE, RAW, DimSpec

from aegis_envs.tabletop.env import TabletopEnv


class Tabletop(StepBenchmark):
    """One task, as many episodes as are asked for; `seen` and `done` keep what the policy was sent and what it did."""

    render_backends: ClassVar[frozenset[str]] = frozenset({"gpu", "cpu"})

    def __init__(self, task: str, max_episode_steps: int) -> None:
        super().__init__()
        self.env = TabletopEnv(task, "test", max_episode_steps=max_episode_steps)
        self.seen: list[dict[str, Any]] = []
        self.done: list[np.ndarray] = []

    def get_tasks(self) -> list[dict[str, Any]]:
        return [{"name": self.env.task}]

    def reset(self, task: dict[str, Any]) -> Any:
        return self.env.reset(seed=int(task.get("episode_idx", 0)))[0]

    def step(self, action: dict[str, Any]) -> StepResult:
        self.done.append(action["actions"])
        observation, reward, terminated, truncated, info = self.env.step(action["actions"])
        return StepResult(observation, float(reward), terminated or truncated, info)

    def make_obs(self, raw_obs: Any, task: dict[str, Any]) -> dict[str, Any]:
        sent = {
            "images": raw_obs["pixels"],
            "states": raw_obs["agent_pos"],
            "task_description": self.env.task_description,
        }
        self.seen.append(sent)
        return sent

    def get_step_result(self, step_result: StepResult) -> dict[str, Any]:
        return {"success": bool(step_result.info["is_success"])}

    def get_action_spec(self) -> dict[str, DimSpec]:
        return {"actions": RAW}

    def get_observation_spec(self) -> dict[str, DimSpec]:
        return {"image": IMAGE_RGB, "state": RAW, "language": LANGUAGE}
