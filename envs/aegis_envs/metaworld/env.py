"""Meta-World's 50 tasks at the picture size one wants, many times as fast as LeRobot's `--env.type=metaworld`.

Observations, actions, success and sentences are LeRobot's, so that a policy trained on one runs in the other. What
makes it fast: pictures are drawn at their size instead of 480 x 480, once a step, without shadow maps, reflections and
multisampling, which is what software rendering spends its time on. Free of torch and lerobot.
"""

import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.tasks import descriptions, parse_tasks
from aegis_envs.rendering import Canvas, Painter, import_mujoco, own_canvas

IMAGE_SIZE = 128
CONTROL_HZ = 80
MAX_STEPS = 500
STATE_DIM = 4
ACTION_DIM = 4
EXPERT_STATE_DIM = 39
CAMERA = "corner2"
MEND = "uv pip install '.[metaworld]' in a clone of this project"
_CAMERA_POSITION = (0.75, 0.075, 0.7)
"""Where LeRobot moves the camera, metres."""
_MAX_GEOMS = 1000
_WELD_NUMBERS = 11
"""Numbers of a weld constraint up to MuJoCo 3.16; with more of them metaworld 3.0.0 cannot start."""


def fault() -> str | None:
    """What keeps Meta-World from running here, if anything does; the mend is `MEND`."""
    mujoco = import_mujoco()
    try:
        import metaworld.env_dict  # noqa: F401
    except ModuleNotFoundError:
        return "Meta-World is not installed"
    if mujoco.mjNEQDATA != _WELD_NUMBERS:
        return f"Meta-World does not run with MuJoCo {mujoco.__version__}"
    return None


def require_metaworld() -> None:
    """Make sure that Meta-World can run here.

    Raises:
        MetaworldError: it is not installed, or MuJoCo is too new for it.
    """
    if (what := fault()) is not None:
        raise MetaworldError(f"{what}: {MEND}.")


def _simulation(task: str) -> Any:
    """Meta-World's own environment for `task`, its goal and objects drawn anew at each reset."""
    require_metaworld()
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS, ML1_args_kwargs
    from metaworld.types import Task

    task_class = ALL_V3_ENVIRONMENTS[task]
    settings = {key: value for key, value in ML1_args_kwargs[task]["kwargs"].items() if key != "task_id"}
    settings |= {"env_cls": task_class, "rand_vec": None, "partially_observable": False}
    simulation = task_class(camera_name=CAMERA)
    simulation.set_task(Task(env_name=task, data=pickle.dumps(settings)))
    simulation._freeze_rand_vec = False
    simulation.seeded_rand_vec = True
    return simulation


class _Stage:
    """Meta-World's environment with the canvas it is drawn on."""

    def __init__(self, task: str, image_size: int) -> None:
        self.simulation = _simulation(task)
        model = self.simulation.model
        self._camera = model.camera(CAMERA).id
        model.cam_pos[self._camera] = _CAMERA_POSITION
        # All of it has to be off before the context is made: shadow maps are allocated then.
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.light_castshadow[:] = 0
        model.mat_reflectance[:] = 0
        self._size = image_size
        self._canvas: Canvas = own_canvas(model, image_size)
        self._painter = Painter(model, self.simulation.data, self._canvas, _MAX_GEOMS)

    def image(self) -> NDArray[np.uint8]:
        # Meta-World's camera hangs upside down.
        return np.ascontiguousarray(self._painter.image(self._camera, self._size)[::-1, ::-1])

    def close(self) -> None:
        self._canvas.free()


class MetaworldEnv(gym.Env[dict[str, Any], NDArray[np.float32]]):
    """One task, such as `reach-v3`.

    Observation: `{"pixels", "agent_pos"}`, a picture (size, size, 3) uint8; `agent_pos` (4,) is the hand's xyz in
    metres and the gripper's opening from 0 to 1. Action: (4,) in [-1, 1], displacement of the hand in centimetres and
    the gripper's effort (-1 opens, 1 closes). Reward is Meta-World's, 0 to 10. The episode terminates with success
    (`info["is_success"]`) and is truncated after `_max_episode_steps`.

    A seed gives the scene that LeRobot's environment shows for it. The simulation is made at the first reset, in the
    process that uses it, and freed by `close`, after which `reset` makes another.

    Raises:
        MetaworldError: unknown task, Meta-World missing.
        SimulatorError: no off-screen rendering on this machine (at the first reset).
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012

    def __init__(
        self,
        task: str,
        image_size: int = IMAGE_SIZE,
        render_mode: str | None = "rgb_array",
        max_episode_steps: int | None = None,
    ) -> None:
        self.task = parse_tasks(task)[0]
        self.task_description = descriptions()[self.task]
        self.image_size = image_size
        self.render_mode = render_mode
        self._max_episode_steps = min(max_episode_steps or MAX_STEPS, MAX_STEPS)
        self.observation_space = gym.spaces.Dict(
            {
                "pixels": gym.spaces.Box(0, 255, (image_size, image_size, 3), np.uint8),
                "agent_pos": gym.spaces.Box(-1000.0, 1000.0, (STATE_DIM,), np.float64),
            }
        )
        self.action_space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,), np.float32)
        self.expert_state: NDArray[np.float64] = np.zeros(EXPERT_STATE_DIM)
        """What Meta-World's scripted experts see, (39,): hand and objects now and a step ago, and the goal."""
        self._stage: _Stage | None = None
        self._image: NDArray[np.uint8] | None = None
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.start(seed)
        return self.observe(), {"is_success": False}

    def start(self, seed: int | None = None) -> None:
        """Begin an episode without rendering; without a seed the next of the running sequence."""
        if self._stage is None:
            self._stage = _Stage(self.task, self.image_size)
        if seed is not None:
            self._stage.simulation.seed(seed)
        self._image, self._steps = None, 0
        self.expert_state, _ = self._stage.simulation.reset()

    def step(self, action: NDArray[np.floating]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward, truncated, info = self.advance(action)
        return self.observe(), reward, info["is_success"], truncated, info

    def advance(self, action: NDArray[np.floating]) -> tuple[float, bool, dict[str, Any]]:
        """Move one step without rendering: reward, truncation and info."""
        if self._stage is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self.expert_state, reward, done, _, info = self._stage.simulation.step(action)
        self._image = None
        self._steps += 1
        is_success = bool(info.get("success", 0))
        truncated = not is_success and self._steps >= self._max_episode_steps
        return float(reward), truncated, {**info, "task": self.task, "done": done, "is_success": is_success}

    def observe(self) -> dict[str, Any]:
        """The present observation; a step is rendered once, however often this is asked."""
        return {"pixels": self.render(), "agent_pos": self.expert_state[:STATE_DIM].copy()}

    def expert_action(self) -> NDArray[np.float32]:
        """What Meta-World's scripted expert would do now, (4,), clipped to [-1, 1] (it asks for up to 12)."""
        from metaworld.policies import ENV_POLICY_MAP

        with warnings.catch_warnings():
            # Meta-World warns of its own experts' large actions.
            warnings.simplefilter("ignore")
            action = ENV_POLICY_MAP[self.task]().get_action(self.expert_state)
        return np.clip(np.asarray(action, np.float32), -1.0, 1.0)

    def render(self) -> NDArray[np.uint8]:
        """The picture of the present observation, (size, size, 3) uint8."""
        if self._stage is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        if self._image is None:
            self._image = self._stage.image()
        return self._image

    def close(self) -> None:
        if self._stage is not None:
            self._stage.close()
            self._stage = None
