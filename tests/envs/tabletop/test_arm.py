"""Inverse kinematics against MuJoCo's own forward kinematics."""

import mujoco
import numpy as np
import pytest

from aegis_envs.tabletop import arm
from aegis_envs.tabletop.model import build_xml


@pytest.fixture(scope="module")
def model():
    return mujoco.MjModel.from_xml_string(build_xml())


def test_inverse_kinematics_puts_the_fingertips_there_pointing_down(model):
    data = mujoco.MjData(model)
    for xyz in np.random.default_rng(0).uniform(arm.WORKSPACE_LOW, arm.WORKSPACE_HIGH, (200, 3)):
        data.qpos[:5] = arm.inverse_kinematics(xyz)
        mujoco.mj_kinematics(model, data)
        tip = data.site("tip")
        np.testing.assert_allclose(tip.xpos, xyz, atol=1e-9)
        rotation = tip.xmat.reshape(3, 3)
        np.testing.assert_allclose(rotation[:, 2], [0, 0, -1], atol=1e-9)
        np.testing.assert_allclose(rotation[:, 1], [0, 1, 0], atol=1e-9)


def test_a_point_out_of_reach_still_gives_finite_angles():
    assert np.isfinite(arm.inverse_kinematics(np.array([5.0, 0.0, 0.0]))).all()
    assert np.isfinite(arm.inverse_kinematics(np.array([*arm.BASE_XYZ[:2], arm.SHOULDER_Z - arm.TOOL]))).all()
