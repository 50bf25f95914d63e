"""A robot and a leader to move it by, without hardware: a plugin as LeRobot finds it, with the flags of an SO-101.

Installed into a folder of its own by the fixture of `tests/docs/test_robot_guide.py`. Its joints go where they are
sent; its cameras show noise around how far they are open, in the size that `--robot.cameras` asks for.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from lerobot.cameras import CameraConfig
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
SENT = Path("sent_actions.txt")
"""Every action that the robot was sent, a line each, in the folder of the command."""


@RobotConfig.register_subclass("pretended_follower")
@dataclass
class PretendedFollowerConfig(RobotConfig):
    port: str = ""
    cameras: dict[str, CameraConfig] = field(default_factory=dict)


@TeleoperatorConfig.register_subclass("pretended_leader")
@dataclass
class PretendedLeaderConfig(TeleoperatorConfig):
    port: str = ""


class _Device:
    is_connected = False
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def calibrate(self) -> None:
        pass

    def configure(self) -> None:
        pass


class PretendedFollower(_Device, Robot):
    config_class = PretendedFollowerConfig
    name = "pretended_follower"

    def __init__(self, config: PretendedFollowerConfig) -> None:
        super().__init__(config)
        self.cameras = config.cameras
        self._angles = dict.fromkeys(self.action_features, 0.0)
        self._random = np.random.default_rng(0)

    @property
    def action_features(self) -> dict:
        return {f"{joint}.pos": float for joint in JOINTS}

    @property
    def observation_features(self) -> dict:
        sizes = {name: (camera.height, camera.width, 3) for name, camera in self.cameras.items()}
        return {**self.action_features, **sizes}

    def get_observation(self) -> dict:
        open_by = int(np.clip(self._angles["gripper.pos"], 0, 100))
        pictures = {
            name: self._random.integers(
                open_by, open_by + 100, (camera.height, camera.width, 3), dtype=np.uint8
            )
            for name, camera in self.cameras.items()
        }
        return {**self._angles, **pictures}

    def send_action(self, action: dict) -> dict:
        assert list(action) == list(self.action_features), "each joint, in its order"
        self._angles = {name: float(value) for name, value in action.items()}
        with SENT.open("a") as file:
            file.write(f"{' '.join(f'{value:.4f}' for value in self._angles.values())}\n")
        return action


class PretendedLeader(_Device, Teleoperator):
    config_class = PretendedLeaderConfig
    name = "pretended_leader"
    feedback_features: dict = {}  # noqa: RUF012
    action_features = {f"{joint}.pos": float for joint in JOINTS}  # noqa: RUF012

    def __init__(self, config: PretendedLeaderConfig) -> None:
        super().__init__(config)
        self._steps = 0

    def get_action(self) -> dict:
        """A wave, each joint with its own phase."""
        self._steps += 1
        return {
            name: 50 + 40 * float(np.sin(self._steps / 5 + i)) for i, name in enumerate(self.action_features)
        }

    def send_feedback(self, feedback: dict) -> None:
        pass
