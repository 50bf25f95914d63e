"""Demonstrations in lerobot-env-so101: `python so101_demonstrations.py FOLDER EPISODES STEPS`.

Its own scripted controller reaches the cube and closes the gripper; it lifts nothing.
"""

import sys

import gymnasium as gym
import lerobot_env_so101
import numpy as np
from lerobot.datasets import LeRobotDataset
from lerobot_env_so101.scripted import scripted_reach_close

_ACTION_SCALE = 0.025
"""Metres of a position action of 1."""


def main() -> None:
    env = gym.make(
        lerobot_env_so101.ENV_ID,
        image_obs=True,
        random_block_position=True,
        action_scale=_ACTION_SCALE,
    )
    features = {
        "observation.images.front": {
            "dtype": "image",
            "shape": (128, 128, 3),
            "names": ["height", "width", "channels"],
        },
        "observation.state": {"dtype": "float32", "shape": (14,), "names": None},
        "action": {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "grasp"]},
    }
    dataset = LeRobotDataset.create("local/so101", 10, features, root=sys.argv[1], use_videos=False)
    for seed in range(int(sys.argv[2])):
        seen, _ = env.reset(seed=seed)
        for _ in range(int(sys.argv[3])):
            block = env.unwrapped._data.sensor("block_pos").data
            action = scripted_reach_close(np.concatenate([seen["agent_pos"], block]), _ACTION_SCALE)
            frame = {
                "observation.images.front": seen["pixels"]["front"],
                "observation.state": seen["agent_pos"].astype(np.float32),
                "action": action,
            }
            dataset.add_frame({**frame, "task": "reach the cube and close the gripper"})
            seen, *_ = env.step(action)
        dataset.save_episode()
    dataset.finalize()
    env.close()


if __name__ == "__main__":
    main()
