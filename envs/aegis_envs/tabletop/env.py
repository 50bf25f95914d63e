"""The gymnasium env: one tabletop task at 10 Hz, two cameras, an instruction; free of torch and lerobot."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from aegis_envs.caption import captioned
from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.episodes import SPLITS, check_split, retarget, sample_episode
from aegis_envs.tabletop.scene import Scene
from aegis_envs.tabletop.sim import CAMERAS, CONTROL_HZ, IMAGE_SIZE, MAX_STEP, TabletopSim
from aegis_envs.tabletop.tasks import TASKS, Episode, Judge, nearest_object, parse_tasks

RENDER_SIZE = 320
STATE_DIM = 8
ACTION_DIM = 4


def seeded_episode(task: str, split: str, seed: int) -> Episode:
    """The episode that `TabletopEnv(task, split).reset(seed=seed)` begins."""
    return _draw(task, split, seeding.np_random(seed)[0])


def _draw(task: str, split: str, rng: np.random.Generator) -> Episode:
    # The split is part of the seed: no seed shows the same scene in `train` and `test`.
    seed = [list(SPLITS).index(split), list(TASKS).index(task), int(rng.integers(2**31))]
    return sample_episode(task, split, np.random.default_rng(seed))


class TabletopEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """One of the tasks reach, push, pick, bowl.

    Observation: `{"pixels": {"front", "wrist"}, "agent_pos"}`, images (size, size, 3) uint8; `agent_pos` (8,)
    is fingertip xyz in metres, gripper opening 0 to 1, and the angles of turn, shoulder, elbow and wrist in
    radians. Action: (4,) in [-1, 1], fingertip displacement in units of `MAX_STEP` and gripper (-1 closed, 1
    open). Reward 1 on success, else 0. The episode terminates with success, or with failure when the request
    was carried out on another object; it is truncated after `_max_episode_steps`.

    `reset(options={"target": name, "zone": colour})` draws the seed's scene and instructs another target;
    `{"episode": Episode}` or `{"scene": Scene or its dict, "target": name}` sets the scene too.

    Raises:
        TabletopError: unknown task or split.
        SimulatorError: no off-screen rendering on this machine.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        task: str = "reach",
        split: str = "train",
        image_size: int = IMAGE_SIZE,
        render_mode: str | None = "rgb_array",
        max_episode_steps: int | None = None,
    ) -> None:
        self.task = parse_tasks(task)[0]
        self.split = check_split(split)
        self.image_size = image_size
        self.render_mode = render_mode
        self._max_episode_steps = max_episode_steps or TASKS[self.task].max_steps
        image = gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Dict(dict.fromkeys(CAMERAS, image)),
                "agent_pos": gym.spaces.Box(-4.0, 4.0, (STATE_DIM,), np.float32),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.sim = TabletopSim()
        self.episode: Episode | None = None
        self.task_description = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        drawn = _draw(self.task, self.split, self.np_random)
        self.start(self._chosen_episode(drawn, options or {}))
        return self.observe(), self._info(None, with_scene=True)

    @staticmethod
    def _chosen_episode(episode: Episode, options: dict[str, Any]) -> Episode:
        if "episode" in options:
            return options["episode"]
        if "scene" in options:
            scene = options["scene"]
            scene = scene if isinstance(scene, Scene) else Scene.from_dict(scene)
            target = options.get("target", scene.objects[0].name)
            zone = options.get("zone", scene.zones[0].color if scene.zones else None)
            if TASKS[episode.task].zones and zone not in [item.color for item in scene.zones]:
                raise TabletopError(
                    f'options["scene"] has no {zone or ""} zone, which {episode.task} needs: add one.'
                )
            if TASKS[episode.task].bowl and scene.bowl is None:
                raise TabletopError(f'options["scene"] has no bowl, which {episode.task} needs: add one.')
            instruction = TASKS[episode.task].phrasings[0].format(target=target, zone=zone)
            scene.index(target)
            return Episode(episode.task, episode.split, scene, target, zone, instruction, episode.start)
        if "target" in options or "zone" in options:
            return retarget(episode, options.get("target", episode.target), options.get("zone"))
        return episode

    def start(self, episode: Episode) -> None:
        """Begin `episode`: its scene on the table, the arm at its start."""
        self.episode = episode
        self.task_description = episode.instruction
        self._judge = Judge(episode)
        self._steps = 0
        self.sim.set_scene(episode.scene)
        self.sim.set_arm(np.array(episode.start), 1.0)

    def step(self, action: NDArray[np.floating]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        outcome = self.advance(action)
        truncated = outcome is None and self._steps >= self._max_episode_steps
        info = self._info(outcome, with_scene=outcome is not None or truncated)
        return self.observe(), float(outcome == "success"), outcome is not None, truncated, info

    def advance(self, action: NDArray[np.floating]) -> str | None:
        """Move one step without rendering; "success", "wrong_object" or None while the episode goes on."""
        if self.episode is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        action = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self.sim.move(action[:3] * MAX_STEP, (action[3] + 1) / 2)
        self._steps += 1
        return self._judge.update(self.sim)

    def observe(self) -> dict[str, Any]:
        """The present observation."""
        pixels = {camera: self.sim.render(camera, self.image_size) for camera in CAMERAS}
        return {"pixels": pixels, "agent_pos": self.state()}

    def state(self) -> NDArray[np.float32]:
        """`agent_pos`, (8,)."""
        sim = self.sim
        return np.concatenate([sim.tip_position(), [sim.gripper_opening()], sim.joint_positions()]).astype(
            np.float32
        )

    def _info(self, outcome: str | None, with_scene: bool) -> dict[str, Any]:
        assert self.episode is not None
        nearest, distance = nearest_object(self.sim)
        info: dict[str, Any] = {
            "is_success": outcome == "success",
            "wrong_object": outcome == "wrong_object",
            "task": self.task,
            "instruction": self.episode.instruction,
            "target": self.episode.target,
            "zone": self.episode.zone or "",
            "nearest_object": nearest,
            "nearest_distance": distance,
        }
        if with_scene:
            info["scene"] = self.sim.current_scene().to_dict()
        return info

    def render(self) -> NDArray[np.uint8]:
        """The front view for videos, the instruction over its upper edge, (320, 320, 3) uint8."""
        return captioned(self.sim.render("front", RENDER_SIZE), self.task_description)

    def close(self) -> None:
        self.sim.close()
