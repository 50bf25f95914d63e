"""Geometry of the arm: five joints (turn, shoulder, elbow, wrist, roll) that keep the gripper pointing down.

Closed-form inverse kinematics; nothing here simulates. Lengths in metres, angles in radians, table frame.
"""

import numpy as np
from numpy.typing import NDArray

BASE_XYZ = (-0.44, 0.0, 0.0)
SHOULDER_Z = 0.28
UPPER_ARM = 0.40
FOREARM = 0.40
TOOL = 0.20
"""From the wrist to the point between the fingertips."""

WORKSPACE_LOW = np.array([-0.20, -0.25, 0.022])
WORKSPACE_HIGH = np.array([0.20, 0.25, 0.28])
"""Where the point between the fingertips may be commanded to go."""
HOME_XYZ = np.array([-0.19, 0.0, 0.20])

FINGER_OPEN = 0.043
"""Distance of each finger's inner face from the middle when fully open: an 8.6 cm opening."""


def inverse_kinematics(xyz: NDArray[np.floating]) -> NDArray[np.float64]:
    """Joint angles (5,) that put the fingertips at `xyz` (3,) with the gripper pointing down, elbow up.

    A point out of reach is replaced by the nearest reachable one on the line from the shoulder.
    """
    dx, dy = float(xyz[0]) - BASE_XYZ[0], float(xyz[1]) - BASE_XYZ[1]
    turn = np.arctan2(dy, dx)
    out, up = np.hypot(dx, dy), float(xyz[2]) + TOOL - SHOULDER_Z
    reach = np.clip(np.hypot(out, up), abs(UPPER_ARM - FOREARM) + 1e-3, UPPER_ARM + FOREARM - 1e-3)
    inner = np.arccos(np.clip((UPPER_ARM**2 + reach**2 - FOREARM**2) / (2 * UPPER_ARM * reach), -1.0, 1.0))
    elbow = np.arccos(np.clip((reach**2 - UPPER_ARM**2 - FOREARM**2) / (2 * UPPER_ARM * FOREARM), -1.0, 1.0))
    shoulder = np.arctan2(out, up) - inner
    return np.array([turn, shoulder, elbow, np.pi - shoulder - elbow, turn])
