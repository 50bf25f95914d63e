"""Tabletop steps a second on one core, with both cameras at the default size, and where the time goes.

    python benchmarks/tabletop_speed.py [--steps=400] [--size=96] [--expert-episodes=0] [--json=FILE]

Target: 120 steps a CPU-second. With `--expert-episodes` the expert's success on every task and split is counted too.
CPU-seconds are those of the process, so other work on the machine matters less than it does to the clock.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from _report import report

from aegis_envs.tabletop.env import TabletopEnv
from aegis_envs.tabletop.episodes import SPLITS
from aegis_envs.tabletop.expert import expert_action
from aegis_envs.tabletop.sim import CAMERAS
from aegis_envs.tabletop.tasks import TASKS


def per_cpu_second(act: Callable[[], Any], count: int) -> float:
    """How often `act` runs in a second of this process's CPU time."""
    act()
    start = time.process_time()
    for _ in range(count):
        act()
    return count / (time.process_time() - start)


def speeds(task: str, size: int, count: int) -> dict[str, float]:
    """Rates of one task's environment with four objects moving under random actions."""
    env = TabletopEnv(task, image_size=size, max_episode_steps=10**9)
    seed = next(seed for seed in range(100) if len(env.reset(seed=seed)[1]["scene"]["objects"]) == 4)
    rng = np.random.default_rng(0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(rng.uniform(-1, 1, 4))
        if terminated or truncated:
            env.reset(seed=seed)

    rates = {
        "steps": per_cpu_second(step, count),
        "physics": per_cpu_second(lambda: env.sim.move(rng.uniform(-0.04, 0.04, 3), 1.0), count),
        **{
            camera: per_cpu_second(lambda name=camera: env.sim.render(name, size), count)
            for camera in CAMERAS
        },
        "resets": per_cpu_second(lambda: env.reset(seed=seed), max(count // 10, 5)),
    }
    env.close()
    return rates


def expert_success(task: str, split: str, episodes: int) -> dict[str, float]:
    """Successes of the scripted expert and its mean number of steps."""
    env = TabletopEnv(task, split)
    lengths = []
    for seed in range(episodes):
        env.reset(seed=seed)
        outcome, steps = None, 0
        while outcome is None and steps < env._max_episode_steps:
            outcome = env.advance(expert_action(env.sim, env.episode))
            steps += 1
        if outcome == "success":
            lengths.append(steps)
    return {"successes": len(lengths), "episodes": episodes, "mean_steps": float(np.mean(lengths))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--expert-episodes", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"size": arguments.size}
    for task in TASKS:
        for name, rate in speeds(task, arguments.size, arguments.steps).items():
            figures[f"{task}: {name} a CPU-second"] = rate
    for task in TASKS if arguments.expert_episodes else ():
        for split in SPLITS:
            figures[f"expert {task}/{split}"] = expert_success(task, split, arguments.expert_episodes)
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
