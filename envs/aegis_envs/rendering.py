"""Off-screen images of a MuJoCo model, and one clear sentence where the machine cannot draw.

An OpenGL context costs some 15 MB and tens of milliseconds, so a thread keeps one per image size and every
tabletop in it draws there. That is sound because all of them show the same model text, which has no meshes
or textures of its own to upload. A model that has some needs a `Canvas` of its own.
"""

import atexit
import importlib
import os
import threading
from functools import cache
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from aegis_envs.errors import SimulatorError
from aegis_policy.support import opengl

_MAX_GEOMS = 200


def import_mujoco() -> Any:
    """The `mujoco` module with off-screen rendering selected (EGL on Linux unless MUJOCO_GL says otherwise).

    Raises:
        SimulatorError: the OpenGL platform named by MUJOCO_GL cannot be loaded.
    """
    opengl.chosen()
    try:
        import mujoco
    except (ImportError, AttributeError, RuntimeError) as error:
        raise SimulatorError(_no_rendering(error)) from error
    return mujoco


def _no_rendering(error: Exception) -> str:
    platform = os.environ.get("MUJOCO_GL", "")
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"off-screen rendering is not available with MUJOCO_GL={platform} ({first_line}): {opengl.mend()}."


def _context_class(mujoco: Any) -> Any:
    """MuJoCo's context for the platform named by MUJOCO_GL now.

    `mujoco.GLContext` was chosen when somebody first imported mujoco, perhaps before MUJOCO_GL was set.
    """
    platform = opengl.chosen()
    if platform in ("egl", "osmesa"):
        return importlib.import_module(f"mujoco.{platform}").GLContext
    return mujoco.GLContext


class Canvas:
    """A square off-screen buffer with its OpenGL context, for one model.

    Raises:
        SimulatorError: no OpenGL context can be made.
    """

    def __init__(self, model: Any, size: int) -> None:
        mujoco = import_mujoco()
        self._mujoco = mujoco
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        try:
            self._gl = _context_class(mujoco)(size, size)
            self._gl.make_current()
            self._mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        except Exception as error:  # each platform has its own
            raise SimulatorError(_no_rendering(error)) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._mjr)
        self._rect = mujoco.MjrRect(0, 0, size, size)
        self._size = size
        _free_at_exit()

    def make_current(self) -> None:
        self._gl.make_current()

    def draw(self, scene: Any) -> NDArray[np.uint8]:
        """The picture of `scene`, (size, size, 3)."""
        image = np.empty((self._size, self._size, 3), np.uint8)
        self._mujoco.mjr_render(self._rect, scene, self._mjr)
        self._mujoco.mjr_readPixels(image, None, self._rect, self._mjr)
        return np.ascontiguousarray(image[::-1])

    def free(self) -> None:
        """Give the context back; the canvas is of no use afterwards, and no other is the current one."""
        _owned.discard(self)
        _canvases.forget_current()
        try:
            self._gl.make_current()
        except Exception:  # each platform has its own: it is the current one of another thread
            _abandoned.append(self._mjr)
        else:
            self._mjr.free()
        self._gl.free()


class _Canvases(threading.local):
    """The shared canvases of one thread, by size; OpenGL contexts must not cross threads."""

    def __init__(self) -> None:
        self._by_size: dict[int, Canvas] = {}
        self._current: Canvas | None = None

    def get(self, model: Any, size: int) -> Canvas:
        canvas = self._by_size.get(size)
        if canvas is None:
            canvas = self._by_size[size] = Canvas(model, size)
        elif canvas is not self._current:
            canvas.make_current()
        self._current = canvas
        return canvas

    def yield_to(self, canvas: Canvas) -> Canvas:
        """Make a canvas that is none of these the current one."""
        canvas.make_current()
        self.forget_current()
        return canvas

    def forget_current(self) -> None:
        """Let the next picture make its canvas current, whatever was."""
        self._current = None

    def free(self) -> None:
        while self._by_size:
            self._by_size.popitem()[1].free()


_canvases = _Canvases()
_owned: WeakSet[Canvas] = WeakSet()
_abandoned: list[Any] = []
"""What must not be freed, for it would free the numbers of its buffers in the context that is current here."""


def own_canvas(model: Any, size: int) -> Canvas:
    """A canvas that nothing else draws on, for a model with meshes or textures. Its owner frees it.

    Raises:
        SimulatorError: no OpenGL context can be made.
    """
    canvas = Canvas(model, size)
    _owned.add(_canvases.yield_to(canvas))
    return canvas


@cache
def _free_at_exit() -> None:
    # Registered after MuJoCo's own exit handler, so that it runs first: contexts outlive no display.
    atexit.register(_free_all)


def _free_all() -> None:
    for canvas in list(_owned):
        canvas.free()
    free_contexts()


def free_contexts() -> None:
    """Free the calling thread's shared OpenGL contexts; the next image makes new ones."""
    _canvases.free()


class Painter:
    """Draws one simulation, on a shared canvas of any size or on its own of one size.

    `data` may change between calls, `model` too, as long as its text is the same.
    """

    def __init__(
        self, model: Any, data: Any, canvas: Canvas | None = None, max_geoms: int = _MAX_GEOMS
    ) -> None:
        self._mujoco = import_mujoco()
        self._model, self._data = model, data
        self._canvas = canvas
        self._scene = self._mujoco.MjvScene(model, max_geoms)
        self._option = self._mujoco.MjvOption()
        self._camera = self._mujoco.MjvCamera()
        self._camera.type = self._mujoco.mjtCamera.mjCAMERA_FIXED

    def image(self, camera: int, size: int) -> NDArray[np.uint8]:
        """What camera number `camera` sees, (size, size, 3).

        Raises:
            SimulatorError: no OpenGL context can be made.
        """
        own = self._canvas
        canvas = _canvases.get(self._model, size) if own is None else _canvases.yield_to(own)
        self._camera.fixedcamid = camera
        self._mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._camera,
            self._mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        return canvas.draw(self._scene)

    def geoms(self, camera: int, size: int) -> NDArray[np.int64]:
        """Number of the geom seen in each pixel, (size, size); -1 where there is none."""
        flags = self._scene.flags
        flags[self._mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[self._mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        try:
            colors = self.image(camera, size).astype(np.int64)
        finally:
            flags[self._mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[self._mujoco.mjtRndFlag.mjRND_IDCOLOR] = (
                False
            )
        segments = colors @ (1, 256, 65536)
        geom_of = np.full(self._scene.ngeom + 1, -1)
        for item in self._scene.geoms[: self._scene.ngeom]:
            if item.objtype == self._mujoco.mjtObj.mjOBJ_GEOM and item.segid >= 0:
                geom_of[item.segid + 1] = item.objid
        return geom_of[segments]
