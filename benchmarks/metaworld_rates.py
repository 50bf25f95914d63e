"""Meta-World through LeRobot's environment and through ours, at picture sizes that policies are trained on.

    python benchmarks/metaworld_rates.py [--task=push-v3] [--sizes=128,224] [--rounds=3] [--expert-episodes=0]
                                         [--json=FILE]

Target: pictures ten times as fast as LeRobot's default, which draws 480 x 480 whatever size is asked for. The sides
take turns, each in a process of its own, for LeRobot's renderer expects to be alone in its process. Three rates a
side, each the median of the rounds: steps with their observation under the expert; pictures alone; and episodes
recorded, from the expert's first action to the dataset on disk. Rates are per CPU-second of one core, so other work on
the machine matters less than it does to the clock. With `--expert-episodes` the successes of every task's expert are
counted too.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _report import report
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aegis_envs.metaworld.demonstrations import MetaworldDemonstration, MetaworldRecipe, demonstrate_to_file
from aegis_envs.metaworld.env import MetaworldEnv
from aegis_envs.metaworld.tasks import descriptions

LEROBOT_SIZE = 480
_PICTURES = 8


def rates(task: str, size: int | None, seed: int) -> dict[str, float]:
    """Rates of our environment at `size`, or of LeRobot's where it is None, on the expert's episode with `seed`."""
    if size is None:
        from lerobot.envs.metaworld import MetaworldEnv as LeRobotEnv

        env: Any = LeRobotEnv(task, obs_type="pixels_agent_pos")
    else:
        env = MetaworldEnv(task, size)
    env.reset(seed=seed)
    env.render()
    start = time.process_time()
    frames = _episode(env, seed, our=size is not None)
    steps = time.process_time() - start
    start = time.process_time()
    for _ in range(_PICTURES):
        env.render() if size is None else env._stage.image()
    pictures = time.process_time() - start
    env.close()
    return {
        "steps": len(frames) / steps,
        "pictures": _PICTURES / pictures,
        "episodes": 60 / _recording(task, size, seed, frames, steps),
    }


def _episode(env: Any, seed: int, our: bool) -> list[dict[str, Any]]:
    """One episode of the expert as frames of a dataset."""
    observation, _ = env.reset(seed=seed)
    frames, over = [], False
    while not over:
        if our:
            action = env.expert_action()
        else:
            action = np.clip(env.expert_policy.get_action(env._env._get_obs()), -1, 1).astype(np.float32)
        frames.append(
            {
                "observation.image": observation["pixels"],
                "observation.state": observation["agent_pos"].astype(np.float32),
                "action": action,
                "task": env.task_description,
            }
        )
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    return frames


def _recording(task: str, size: int | None, seed: int, frames: list[dict[str, Any]], steps: float) -> float:
    """CPU-seconds of an expert's episode and of writing it; ours is staged in a file as aegis-record does."""
    if size is not None:
        recipe = MetaworldRecipe((task,), seed, 0.0, size)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "episode.npz"
            demonstrate_to_file(recipe, 0, file)  # opens the environment
            start = time.process_time()
            demonstrate_to_file(recipe, 0, file)
            made = MetaworldDemonstration.load(file)
            steps = time.process_time() - start
        frames = [
            {
                "observation.image": made.images["image"][step],
                "observation.state": made.state[step],
                "action": made.action[step],
                "task": made.instruction,
            }
            for step in range(len(made.action))
        ]
    side = size or LEROBOT_SIZE
    features = {
        "observation.image": {"dtype": "image", "shape": (side, side, 3), "names": ["h", "w", "c"]},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": None},
    }
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        dataset = LeRobotDataset.create(
            repo_id="local/rates", fps=80, features=features, root=Path(folder) / "data", use_videos=False
        )
        for frame in frames:
            dataset.add_frame(frame)
        dataset.save_episode(parallel_encoding=False)
        dataset.finalize()
        return steps + time.process_time() - start


def expert_success(task: str, episodes: int) -> dict[str, Any]:
    """Successes of Meta-World's scripted expert with clipped actions, and its mean number of steps."""
    env = MetaworldEnv(task)
    lengths = []
    for seed in range(episodes):
        env.start(seed)
        steps, over = 0, False
        while not over:
            _, truncated, info = env.advance(env.expert_action())
            steps += 1
            over = truncated or info["is_success"]
        if info["is_success"]:
            lengths.append(steps)
    env.close()
    mean_steps = float(np.mean(lengths)) if lengths else None
    return {"successes": len(lengths), "episodes": episodes, "mean_steps": mean_steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--task", default="push-v3")
    parser.add_argument("--sizes", default="128,224")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--expert-episodes", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    sides: dict[str, int | None] = {"lerobot": None, **{f"ours at {size}": size for size in sizes}}
    context = multiprocessing.get_context("forkserver")
    workers = {side: ProcessPoolExecutor(1, context) for side in sides}
    measured: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(arguments.rounds):
        for side, size in sides.items():
            measured[side].append(workers[side].submit(partial(rates, arguments.task, size, turn)).result())
    for worker in workers.values():
        worker.shutdown()
    figures: dict[str, Any] = {"task": arguments.task, "rounds": arguments.rounds}
    units = {"steps": "a CPU-second", "pictures": "a CPU-second", "episodes": "a CPU-minute"}
    for kind, unit in units.items():
        for side, turns in measured.items():
            figures[f"{kind} {unit}: {side}"] = float(np.median([turn[kind] for turn in turns]))
        for size in sizes:
            ratios = [
                ours[kind] / theirs[kind]
                for ours, theirs in zip(measured[f"ours at {size}"], measured["lerobot"], strict=True)
            ]
            figures[f"{kind}: ours at {size} / lerobot"] = float(np.median(ratios))
    for task in descriptions() if arguments.expert_episodes else ():
        figures[f"expert {task}"] = expert_success(task, arguments.expert_episodes)
    report(figures, arguments.json)


if __name__ == "__main__":
    main()
