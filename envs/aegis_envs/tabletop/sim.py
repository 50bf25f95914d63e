"""`TabletopSim`: the compiled tabletop. It shows scenes, moves the arm and renders; it knows no tasks.

One `MjModel` serves every scene: shapes, sizes, colours and places are written into it.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aegis_envs.rendering import Painter, free_contexts, import_mujoco
from aegis_envs.tabletop import arm
from aegis_envs.tabletop.model import TIMESTEP, build_xml
from aegis_envs.tabletop.scene import COLORS, MAX_OBJECTS, MAX_ZONES, Scene, SceneObject

Camera = Literal["front", "wrist"]
CAMERAS: tuple[Camera, ...] = ("front", "wrist")
IMAGE_SIZE = 96
MAX_STEP = 0.04
"""Displacement of the fingertips for an action of 1, metres."""
CONTROL_HZ = 10
SUBSTEPS = round(1 / (CONTROL_HZ * TIMESTEP))

NOMINAL_SIZE: dict[str, tuple[float, float, float]] = {
    "cube": (0.0235, 0.0235, 0.0235),
    "cylinder": (0.0225, 0.034, 0.0),
    "sphere": (0.027, 0.0, 0.0),
}
"""MuJoCo geom sizes at scale 1, metres."""
OBJECT_MASS = 0.08
_PARKED = (0.0, 0.0, -1.0)


def object_height(thing: SceneObject) -> float:
    """Height of the object's centre above the table when it stands, metres; its top is twice as high."""
    size = NOMINAL_SIZE[thing.shape]
    return (size[1] if thing.shape == "cylinder" else size[0]) * thing.scale


class TabletopSim:
    """The table with its arm. Not thread-safe."""

    def __init__(self) -> None:
        self._mujoco = import_mujoco()
        self.model = self._mujoco.MjModel.from_xml_string(build_xml())
        self.data = self._mujoco.MjData(self.model)
        self._painter = Painter(self.model, self.data)
        self._scene = Scene(())
        self._tip = self.model.site("tip").id
        self._cameras = {name: self.model.camera(name).id for name in CAMERAS}
        self._object_bodies = [self.model.body(f"object{i}").id for i in range(MAX_OBJECTS)]
        self._object_geoms = [self.model.geom(f"object{i}").id for i in range(MAX_OBJECTS)]
        self._object_qpos = [int(self.model.joint(f"object{i}").qposadr[0]) for i in range(MAX_OBJECTS)]
        self._object_dofs = [int(self.model.joint(f"object{i}").dofadr[0]) for i in range(MAX_OBJECTS)]
        self._zone_geoms = [self.model.geom(f"zone{i}").id for i in range(MAX_ZONES)]
        self._look = {
            name: getattr(self.model, name).copy()
            for name in ("light_dir", "light_diffuse", "cam_pos", "cam_quat", "cam_fovy", "geom_rgba")
        }
        # An empty slot is as it was compiled: mj_setConst derives the rasteriser's range from all of them.
        self._empty_geoms = {
            name: getattr(self.model, name).copy()
            for name in ("geom_type", "geom_size", "geom_rbound", "geom_aabb")
        }
        self._empty_bodies = {
            name: getattr(self.model, name).copy() for name in ("body_mass", "body_inertia")
        }
        self._tint: NDArray[np.float64] = np.ones((MAX_OBJECTS, 3))
        for dof in self._object_dofs:
            # Rolling and sliding die out within a fraction of a second, as on felt.
            self.model.dof_damping[dof : dof + 3] = 0.25
            self.model.dof_damping[dof + 3 : dof + 6] = 2e-4
        self._setpoint = arm.HOME_XYZ.copy()
        self.set_scene(self._scene)

    def set_scene(self, scene: Scene) -> None:
        """Put `scene` on the table with everything at rest and the arm at home."""
        model, data = self.model, self.data
        self._mujoco.mj_resetData(model, data)
        self._scene = scene
        for slot in range(MAX_OBJECTS):
            thing = scene.objects[slot] if slot < len(scene.objects) else None
            self._fill_slot(slot, thing)
        for slot, geom in enumerate(self._zone_geoms):
            zone = scene.zones[slot] if slot < len(scene.zones) else None
            model.body(f"zone{slot}").pos = (zone.x, zone.y, 0.0) if zone else _PARKED
            model.geom_rgba[geom, :3] = COLORS[zone.color] if zone else (0, 0, 0)
        model.body("bowl").pos = (scene.bowl.x, scene.bowl.y, 0.0) if scene.bowl else _PARKED
        # mj_setConst leaves the data at the model's reference configuration.
        qpos = data.qpos.copy()
        self._mujoco.mj_setConst(model, data)
        data.qpos[:] = qpos
        data.qvel[:] = 0.0
        self.set_arm(arm.HOME_XYZ, 1.0)

    def _fill_slot(self, slot: int, thing: SceneObject | None) -> None:
        model, geom, body = self.model, self._object_geoms[slot], self._object_bodies[slot]
        address = self._object_qpos[slot]
        # Parked objects stay out of both cameras and touch nothing; the free joint is held by zero gravity.
        model.geom_contype[geom], model.geom_conaffinity[geom] = (1, 3) if thing else (0, 0)
        model.body_gravcomp[body] = 0.0 if thing else 1.0
        if thing is None:
            self.data.qpos[address : address + 7] = (2.0 + slot, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
            model.geom_rgba[geom, 3] = 0.0
            for name, compiled in self._empty_geoms.items():
                getattr(model, name)[geom] = compiled[geom]
            for name, compiled in self._empty_bodies.items():
                getattr(model, name)[body] = compiled[body]
            return
        size = np.array(NOMINAL_SIZE[thing.shape]) * thing.scale
        kinds = self._mujoco.mjtGeom
        kind = {"cube": kinds.mjGEOM_BOX, "cylinder": kinds.mjGEOM_CYLINDER, "sphere": kinds.mjGEOM_SPHERE}
        model.geom_type[geom] = kind[thing.shape]
        model.geom_size[geom] = size
        half = np.array(
            {"cube": size, "cylinder": (size[0], size[0], size[1]), "sphere": (size[0],) * 3}[thing.shape]
        )
        model.geom_rbound[geom] = {
            "cube": np.linalg.norm(size),
            "cylinder": np.hypot(size[0], size[1]),
            "sphere": size[0],
        }[thing.shape]
        model.geom_aabb[geom] = (0, 0, 0, *half)
        model.body_mass[body] = OBJECT_MASS
        # The box formula for every shape: exact for cubes, close enough for the quasi-static rest.
        model.body_inertia[body] = (
            OBJECT_MASS
            / 3
            * np.array(
                [half[1] ** 2 + half[2] ** 2, half[0] ** 2 + half[2] ** 2, half[0] ** 2 + half[1] ** 2]
            )
        )
        model.geom_rgba[geom] = (*np.clip(np.array(COLORS[thing.color]) * self._tint[slot], 0, 1), 1.0)
        quat = (np.cos(thing.yaw / 2), 0.0, 0.0, np.sin(thing.yaw / 2))
        self.data.qpos[address : address + 7] = (thing.x, thing.y, object_height(thing), *quat)

    @property
    def scene(self) -> Scene:
        """The scene as it was set."""
        return self._scene

    def current_scene(self) -> Scene:
        """The scene with the objects where they are now (yaw included, tilt not)."""
        moved = []
        for slot, thing in enumerate(self._scene.objects):
            w, x, y, z = self.data.xquat[self._object_bodies[slot]]
            yaw = float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
            position = self.object_position(slot)
            moved.append(replace(thing, x=float(position[0]), y=float(position[1]), yaw=yaw))
        return replace(self._scene, objects=tuple(moved))

    def object_position(self, slot: int) -> NDArray[np.float64]:
        """Centre of an object now, (3,) metres."""
        return self.data.xpos[self._object_bodies[slot]].copy()

    def object_speed(self, slot: int) -> float:
        """Linear speed of an object now, metres a second."""
        start = self._object_dofs[slot]
        return float(np.linalg.norm(self.data.qvel[start : start + 3]))

    def set_arm(self, xyz: NDArray[np.floating] | tuple[float, float, float], gripper: float) -> None:
        """Teleport the fingertips to `xyz` with the gripper `gripper` open (0 closed, 1 open), at rest."""
        self._setpoint = np.clip(np.asarray(xyz, float), arm.WORKSPACE_LOW, arm.WORKSPACE_HIGH)
        joints = arm.inverse_kinematics(self._setpoint)
        self.data.qpos[:5] = joints
        self.data.qpos[5:7] = gripper * arm.FINGER_OPEN
        self.data.qvel[:7] = 0.0
        self.data.ctrl[:5] = joints
        self.data.ctrl[5:7] = self._finger_command(gripper)
        self._mujoco.mj_forward(self.model, self.data)

    @staticmethod
    def _finger_command(gripper: float) -> float:
        # Slightly past closed, so that the fingers squeeze whatever they hold.
        return -0.004 + float(np.clip(gripper, 0.0, 1.0)) * (arm.FINGER_OPEN + 0.004)

    def move(self, delta: NDArray[np.floating], gripper: float) -> None:
        """Run one control step with the commanded fingertip position shifted by `delta` (3,) metres.

        `gripper` is the commanded opening, 0 closed to 1 open.
        """
        lead = self._setpoint - self.tip_position()
        # A blocked arm must not wind its command up: it never leads the fingertips by more than 5 cm.
        start = self.tip_position() + np.clip(lead, -0.05, 0.05)
        self._setpoint = np.clip(start + delta, arm.WORKSPACE_LOW, arm.WORKSPACE_HIGH)
        goal = arm.inverse_kinematics(self._setpoint)
        origin = self.data.ctrl[:5].copy()
        self.data.ctrl[5:7] = self._finger_command(gripper)
        ramp = 5
        for part in range(ramp):
            self.data.ctrl[:5] = origin + (goal - origin) * (part + 1) / ramp
            self._mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS // ramp)

    def tip_position(self) -> NDArray[np.float64]:
        """The point between the fingertips, (3,) metres."""
        return self.data.site_xpos[self._tip].copy()

    def gripper_opening(self) -> float:
        """0 closed to 1 fully open, as measured."""
        return float(self.data.qpos[5:7].mean() / arm.FINGER_OPEN)

    def joint_positions(self) -> NDArray[np.float64]:
        """Turn, shoulder, elbow and wrist angles, (4,) radians."""
        return self.data.qpos[:4].copy()

    def randomize_look(self, rng: np.random.Generator) -> None:
        """Draw light, camera pose, table shade and object tints; geometry and names stay as they are."""
        self.reset_look()
        model = self.model
        direction = self._look["light_dir"][0] + rng.uniform(-0.35, 0.35, 3) * (1, 1, 0.2)
        model.light_dir[0] = direction / np.linalg.norm(direction)
        model.light_diffuse[0] = self._look["light_diffuse"][0] * rng.uniform(0.75, 1.2)
        model.vis.headlight.ambient[:] = 0.38 * rng.uniform(0.85, 1.15)
        front = self._cameras["front"]
        model.cam_pos[front] += rng.uniform(-0.015, 0.015, 3)
        model.cam_fovy[front] *= rng.uniform(0.97, 1.06)
        for camera in self._cameras.values():
            model.cam_quat[camera] = _nudged(model.cam_quat[camera], rng.uniform(-0.012, 0.012, 3))
        table = model.geom("table").id
        model.geom_rgba[table, :3] = self._look["geom_rgba"][table, :3] * rng.uniform(0.75, 1.25)
        self._tint = rng.uniform(0.9, 1.08, (MAX_OBJECTS, 3))
        self._paint()

    def reset_look(self) -> None:
        """Undo `randomize_look`."""
        for name in ("light_dir", "light_diffuse", "cam_pos", "cam_quat", "cam_fovy"):
            getattr(self.model, name)[:] = self._look[name]
        self.model.vis.headlight.ambient[:] = 0.38
        table = self.model.geom("table").id
        self.model.geom_rgba[table] = self._look["geom_rgba"][table]
        self._tint = np.ones((MAX_OBJECTS, 3))
        self._paint()

    def _paint(self) -> None:
        for slot, thing in enumerate(self._scene.objects):
            color = np.clip(np.array(COLORS[thing.color]) * self._tint[slot], 0, 1)
            self.model.geom_rgba[self._object_geoms[slot], :3] = color
        self._mujoco.mj_forward(self.model, self.data)

    def render(self, camera: Camera = "front", size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
        """Image of one camera, (size, size, 3) uint8."""
        return self._painter.image(self._cameras[camera], size)

    def visible_pixels(self, camera: Camera = "front", size: int = IMAGE_SIZE) -> list[int]:
        """Pixels of each object, in scene order, that nothing hides."""
        geoms = self._painter.geoms(self._cameras[camera], size)
        return [int((geoms == self._object_geoms[slot]).sum()) for slot in range(len(self._scene.objects))]

    def close(self) -> None:
        """Free this thread's rendering contexts; whoever draws next makes new ones."""
        free_contexts()


def _nudged(quat: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """`quat` (w, x, y, z) turned by a small rotation vector in its own frame."""
    w, x, y, z = quat
    a, b, c = rotation / 2
    turned = np.array(
        [
            w - x * a - y * b - z * c,
            x + w * a + y * c - z * b,
            y + w * b + z * a - x * c,
            z + w * c + x * b - y * a,
        ]
    )
    return turned / np.linalg.norm(turned)
