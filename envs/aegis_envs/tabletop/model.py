"""The MuJoCo model as text: table, five-joint arm with a parallel gripper, two cameras, slots for the scene.

Slots (`object0..`, `zone0..`, `bowl`) are filled by `aegis_envs.tabletop.sim` at every reset without recompiling. No
shadows, reflections, textures or multisampling: software rendering is several times faster without them.
"""

import numpy as np

from aegis_envs.tabletop.arm import BASE_XYZ, FINGER_OPEN, FOREARM, SHOULDER_Z, TOOL, UPPER_ARM
from aegis_envs.tabletop.scene import BOWL_RADIUS, MAX_OBJECTS, MAX_ZONES, ZONE_HALF_SIZE

TIMESTEP = 0.005
FRONT_XYZ = (0.50, 0.0, 0.80)
FRONT_TARGET = (-0.008, 0.0, 0.015)
FRONT_FOVY = 28.5
BOWL_HEIGHT = 0.035
FINGER_HALF_THICKNESS = 0.007

_TABLE = "0.30 0.29 0.28 1"
_ARM = "0.16 0.17 0.19 1"
_FINGER = "0.62 0.60 0.57 1"
_BOWL = "0.42 0.27 0.16 1"


def look_at_axes(eye: tuple[float, ...], target: tuple[float, ...]) -> np.ndarray:
    """Camera axes (right, up, back) as the columns of a (3, 3) rotation, with the world's z as up."""
    back = np.asarray(eye, float) - np.asarray(target, float)
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(back, right), back], axis=1)


def build_xml() -> str:
    """MJCF of the whole tabletop."""
    axes = look_at_axes(FRONT_XYZ, FRONT_TARGET)
    front = " ".join(f"{v:.6f}" for v in np.concatenate([axes[:, 0], axes[:, 1]]))
    return f"""
<mujoco model="aegis_tabletop">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{TIMESTEP}" integrator="implicitfast"
          cone="elliptic" impratio="3" iterations="50" ls_iterations="30"/>
  <size memory="8M"/>
  <visual>
    <quality shadowsize="0" offsamples="0" numslices="20" numstacks="12"/>
    <headlight ambient="0.38 0.38 0.38" diffuse="0.25 0.25 0.25" specular="0 0 0"/>
    <map znear="0.02" zfar="6"/>
  </visual>
  <default>
    <geom condim="4" friction="0.9 0.02 0.004" solref="0.01 1"/>
    <default class="arm">
      <geom type="capsule" rgba="{_ARM}" contype="0" conaffinity="0" mass="0.3"/>
      <joint axis="0 1 0" armature="0.05" damping="1"/>
      <position kp="500" kv="35" forcerange="-80 80"/>
    </default>
    <default class="finger">
      <geom type="box" size="0.013 {FINGER_HALF_THICKNESS} 0.03" rgba="{_FINGER}" mass="0.03" contype="2"
            conaffinity="1" friction="2 0.05 0.01" condim="6"/>
      <joint type="slide" range="-0.004 {FINGER_OPEN}" armature="0.1" damping="2"/>
      <position kp="300" kv="20" ctrlrange="-0.004 {FINGER_OPEN}" forcerange="-10 10"/>
    </default>
  </default>
  <worldbody>
    <light name="lamp" directional="true" pos="0.3 -0.4 1.5" dir="-0.25 0.45 -0.9" castshadow="false"
           diffuse="0.55 0.55 0.55" specular="0.25 0.25 0.25"/>
    <camera name="front" pos="{FRONT_XYZ[0]} {FRONT_XYZ[1]} {FRONT_XYZ[2]}" xyaxes="{front}"
            fovy="{FRONT_FOVY}"/>
    <geom name="table" type="box" size="0.9 0.9 0.05" pos="0 0 -0.05" rgba="{_TABLE}" contype="1"
          conaffinity="3"/>
    {_zones()}
    {_bowl()}
    {_arm()}
    {_objects()}
  </worldbody>
  <actuator>
    <position class="arm" name="turn" joint="turn"/>
    <position class="arm" name="shoulder" joint="shoulder"/>
    <position class="arm" name="elbow" joint="elbow"/>
    <position class="arm" name="wrist" joint="wrist"/>
    <position class="arm" name="roll" joint="roll"/>
    <position class="finger" name="left" joint="left"/>
    <position class="finger" name="right" joint="right"/>
  </actuator>
  <contact>
    <exclude body1="left_finger" body2="right_finger"/>
  </contact>
</mujoco>"""


def _zones() -> str:
    size = f"{ZONE_HALF_SIZE} {ZONE_HALF_SIZE} 0.0008"
    return "\n".join(
        f'<body name="zone{i}" pos="0 0 -1"><geom name="zone{i}" type="box" size="{size}" contype="0" '
        f'conaffinity="0"/></body>'
        for i in range(MAX_ZONES)
    )


def _bowl(sides: int = 10) -> str:
    """A ring of leaning boxes on a disc."""
    solid = f'rgba="{_BOWL}" contype="1" conaffinity="3"'
    parts = [f'<geom type="cylinder" size="{BOWL_RADIUS} 0.003" pos="0 0 0.003" {solid}/>']
    half_width = BOWL_RADIUS * np.tan(np.pi / sides) + 0.003
    for angle in np.arange(sides) * 2 * np.pi / sides:
        x, y = BOWL_RADIUS * np.cos(angle), BOWL_RADIUS * np.sin(angle)
        parts.append(
            f'<body pos="{x:.5f} {y:.5f} {BOWL_HEIGHT / 2}" euler="0 0 {angle:.5f}">'
            f'<geom type="box" size="0.004 {half_width:.5f} {BOWL_HEIGHT / 2}" euler="0 0.25 0" {solid}/>'
            "</body>"
        )
    return f'<body name="bowl" pos="0 0 -1">{"".join(parts)}</body>'


def _arm() -> str:
    x, y, z = BASE_XYZ
    # The hand's z axis points down and its x axis away from the front camera.
    finger_y = FINGER_HALF_THICKNESS
    tilt = 0.22
    return f"""
    <body name="base" pos="{x} {y} {z}" childclass="arm" gravcomp="1">
      <geom type="cylinder" size="0.06 {SHOULDER_Z / 2}" pos="0 0 {SHOULDER_Z / 2}"/>
      <body name="upper_arm" pos="0 0 {SHOULDER_Z}" gravcomp="1">
        <joint name="turn" axis="0 0 1"/>
        <joint name="shoulder"/>
        <geom fromto="0 0 0 0 0 {UPPER_ARM}" size="0.032"/>
        <body name="forearm" pos="0 0 {UPPER_ARM}" gravcomp="1">
          <joint name="elbow"/>
          <geom fromto="0 0 0 0 0 {FOREARM}" size="0.022"/>
          <body name="hand" pos="0 0 {FOREARM}" gravcomp="1">
            <joint name="wrist"/>
            <joint name="roll" axis="0 0 1" armature="0.02"/>
            <geom fromto="0 0 0 0 0 {TOOL - 0.085}" size="0.018"/>
            <geom type="box" size="0.014 0.055 0.01" pos="0 0 {TOOL - 0.075}"/>
            <site name="tip" pos="0 0 {TOOL}" size="0.004" rgba="0 0 0 0"/>
            <camera name="wrist" pos="-0.075 0 {TOOL - 0.18}" fovy="78"
                    xyaxes="0 1 0 {np.cos(tilt):.5f} 0 {-np.sin(tilt):.5f}"/>
            <body name="left_finger" pos="0 {-finger_y} {TOOL - 0.025}" gravcomp="1" childclass="finger">
              <joint name="left" axis="0 -1 0"/><geom name="left_finger"/>
            </body>
            <body name="right_finger" pos="0 {finger_y} {TOOL - 0.025}" gravcomp="1" childclass="finger">
              <joint name="right" axis="0 1 0"/><geom name="right_finger"/>
            </body>
          </body>
        </body>
      </body>
    </body>"""


def _objects() -> str:
    return "\n".join(
        f'<body name="object{i}" pos="{2 + i} 0 1"><joint name="object{i}" type="free"/>'
        f'<geom name="object{i}" type="box" size="0.025 0.025 0.025" mass="0.1" contype="1" conaffinity="3" '
        f'condim="6" friction="0.9 0.02 0.004"/></body>'
        for i in range(MAX_OBJECTS)
    )
