"""What to set where MuJoCo does not draw: what is tried is told, but for one that this machine can do."""

import pytest

from aegis_policy.support import opengl


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The platforms that draw here: put some in."""
    found: set[str] = set()
    monkeypatch.setattr(opengl, "draws", lambda platform: platform in found)
    monkeypatch.setattr(opengl, "_OF_THE_USER", {})
    return found


@pytest.mark.parametrize("named", [None, "", "  "])
def test_a_variable_that_names_nothing_means_egl(named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if named is None:
        monkeypatch.delenv("MUJOCO_GL", raising=False)
    else:
        monkeypatch.setenv("MUJOCO_GL", named)
    assert opengl.chosen() == "egl"


@pytest.mark.parametrize("named", ["osmesa", "glfw", "off", "vulkan", "GLX"])
def test_what_does_not_work_is_replaced_by_what_does(
    named: str, works: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", named)
    works |= {"egl", "glfw"} - {named}
    assert opengl.mend() == "set MUJOCO_GL=egl, which works here"
    works.discard("egl")
    works.add("osmesa")
    assert named == "osmesa" or opengl.mend() == "set MUJOCO_GL=osmesa, which works here"


def test_without_any_that_works_one_is_to_be_installed(works: set[str]) -> None:
    assert opengl.mend().startswith("none of egl, osmesa, glfw draws here; install EGL (Debian")


def test_a_variable_in_the_way_is_to_be_unset(works: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "egl")
    works.add("egl")
    monkeypatch.setattr(opengl, "_OF_THE_USER", {"PYOPENGL_PLATFORM": "EGL"})
    assert opengl.mend() == "set MUJOCO_GL=egl before the program starts, which works here"
    monkeypatch.setattr(opengl, "_OF_THE_USER", {"PYOPENGL_PLATFORM": "osmesa"})
    assert opengl.mend() == "unset PYOPENGL_PLATFORM, which works here"
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert opengl.mend() == "set MUJOCO_GL=egl and unset PYOPENGL_PLATFORM, which works here"


def test_a_platform_is_tried_in_a_process_without_what_is_in_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "none")
    assert opengl.draws("egl") and not opengl.draws("vulkan")
