"""The OpenGL platform that MuJoCo draws off-screen with: which was asked for, and what to set where it does not work.

Standard library only. What may crash is tried in a process of its own.
"""

import os
import subprocess
import sys

PLATFORMS = ("egl", "osmesa", "glfw")
"""As MUJOCO_GL names them, the best for a machine without a screen first."""

_IN_THE_WAY = ("PYOPENGL_PLATFORM", "MUJOCO_EGL_DEVICE_ID")
"""Variables that may keep a platform from working."""
_OF_THE_USER = {name: os.environ[name] for name in _IN_THE_WAY if os.environ.get(name)}
"""Those that were set before MuJoCo, which sets the first itself, was imported."""
_TIMEOUT_S = 60
_DRAW = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
assert renderer.render().shape == (16, 16, 3)
"""


def chosen() -> str:
    """The platform that MUJOCO_GL names; on Linux it is made to name `egl` where it is unset or empty."""
    named = os.environ.get("MUJOCO_GL", "").strip().lower()
    if not named and sys.platform == "linux":
        named = os.environ["MUJOCO_GL"] = "egl"
    return named


def mend() -> str:
    """What to do on this machine when the chosen platform does not draw; takes seconds, for the others are tried."""
    asked = chosen()
    for platform in sorted(PLATFORMS, key=lambda each: each != asked):
        if draws(platform):
            steps = [f"unset {name}" for name, value in _OF_THE_USER.items() if value.lower() != platform]
            if platform != asked:
                steps = [f"set MUJOCO_GL={platform}", *steps]
            steps = steps or [f"set MUJOCO_GL={platform} before the program starts"]
            return f"{' and '.join(steps)}, which works here"
    return (
        f"none of {', '.join(PLATFORMS)} draws here; install EGL (Debian, Ubuntu: apt-get install libegl1 "
        "libgl1-mesa-dri) and set MUJOCO_GL=egl"
    )


def draws(platform: str) -> bool:
    """Whether a new process can draw with a platform, without the variables that may be in its way."""
    environment = {name: value for name, value in os.environ.items() if name not in _IN_THE_WAY}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DRAW],
            env=environment | {"MUJOCO_GL": platform},
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
