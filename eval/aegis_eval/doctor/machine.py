"""What `aegis-doctor` finds out about a machine: interpreter, packages, imports, rendering, videos, simulators, GPUs.

Imports nothing but the standard library and this project's own light modules: what may be broken is tried in a process
of its own.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import NamedTuple

from aegis_eval.doctor.files import Training, vlm_memory
from aegis_policy.support import opengl
from aegis_policy.support.finding import Finding

_PACKAGE = "lerobot_policy_aegis"
_OLDEST_PYTHON = (3, 12)
_TIMEOUT_S = 300
_IMPORTED = ("torch", "transformers", "mujoco", "lerobot", _PACKAGE)
"""Modules in the order in which one brings the next down."""
_EXTRAS = {
    "metaworld": "metaworld",
    "gym_pusht": "pusht",
    "gym_aloha": "aloha",
    "libero": "libero",
    "ray": "ray",
}
"""Module -> extra that brings it."""
RENDER = """
import sys, time
from aegis_envs.errors import SimulatorError
from aegis_envs.tabletop.sim import TabletopSim
try:
    sim = TabletopSim()
    sim.render("front", 96)
except SimulatorError as error:
    sys.exit(" ".join(str(error.__cause__).split()))
started = time.perf_counter()
for _ in range(20):
    sim.render("front", 96)
print(round(20 / (time.perf_counter() - started)))
"""
GPU = """
import json, torch
seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
found = [torch.cuda.get_device_properties(i) for i in seen]
print(json.dumps([[each.name, each.total_memory] for each in found]))
"""
METAWORLD = """
import json
from aegis_envs.metaworld.env import MEND, fault
print(json.dumps([fault(), MEND]))
"""


class Attempt(NamedTuple):
    """How code in a process of its own ended, and the last line it printed."""

    works: bool
    said: str


def attempt(code: str, *arguments: str) -> Attempt:
    """Run code in a process of its own, which may crash or wait for ever."""
    opengl.chosen()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Attempt(False, f"no answer after {_TIMEOUT_S} s; a download may take longer, so make it first")
    if done.returncode < 0:
        return Attempt(False, f"ended by signal {-done.returncode}")
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return Attempt(done.returncode == 0, said[-1] if said else "")


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < _OLDEST_PYTHON:
        wanted = ".".join(map(str, _OLDEST_PYTHON))
        yield Finding("error", f"Python {found} is too old", f"uv venv --python {wanted}")
    else:
        yield Finding("ok", f"Python {found}")


def check_packages() -> Iterator[Finding]:
    """Whether what this package requires is there, in a version that it was made for."""
    try:
        wanted = [each for each in requires(_PACKAGE) or [] if "extra ==" not in each]
    except PackageNotFoundError:
        yield Finding("error", f"{_PACKAGE} is not installed", "uv pip install . in a clone of it")
        return
    found = []
    for requirement in wanted:
        name, bounds = re.fullmatch(r"([\w.-]+)(?:\[.*\])?(.*)", requirement.split(";")[0].strip()).groups()  # type: ignore[union-attr]
        try:
            installed = version(name)
        except PackageNotFoundError:
            yield Finding("error", f"{name} is not installed", f"uv pip install '{requirement}'")
            continue
        if not _within(installed, bounds):
            yield Finding("error", f"{name} {installed} is not {bounds}", f"uv pip install '{requirement}'")
        found.append(f"{name} {installed}")
    yield Finding("ok", f"{_PACKAGE} {version(_PACKAGE)} with {', '.join(found)}")


def check_imports() -> Iterator[Finding]:
    """Whether the plugin can be imported; if not, the first of its dependencies that cannot."""
    if attempt(f"import {_PACKAGE}").works:
        yield Finding("ok", "LeRobot finds the plugin: --policy.type=aegis")
        return
    for module in _IMPORTED:
        works, said = attempt(f"import {module}")
        if not works:
            yield Finding("error", f"import {module} fails ({said})", _reinstall(module))
            return


def check_rendering() -> Iterator[Finding]:
    """Whether MuJoCo draws off-screen, and how fast."""
    works, said = attempt(RENDER)
    platform = opengl.chosen() or "default"
    if works:
        yield Finding(
            "ok", f"MuJoCo renders off-screen (MUJOCO_GL={platform}), {said} images of 96 pixels a second"
        )
    else:
        yield Finding(
            "error",
            f"MuJoCo does not render off-screen with MUJOCO_GL={platform} ({said})",
            opengl.mend(),
        )


def check_video() -> Iterator[Finding]:
    """What LeRobot decodes videos with."""
    if attempt("import torchcodec.decoders").works:
        yield Finding("ok", "LeRobot reads videos with torchcodec")
    elif attempt("import av").works:
        mend = (
            "pages of warnings about libtorchcodec are harmless; they end with torchcodec's FFmpeg libraries"
        )
        if shutil.which("ffmpeg") is None:
            mend += " (apt-get install ffmpeg)"
        yield Finding(
            "warning", "LeRobot reads videos with PyAV, more slowly, because torchcodec does not load", mend
        )
    else:
        yield Finding("error", "neither torchcodec nor PyAV can be imported: no videos", "uv pip install av")


def check_simulators() -> Iterator[Finding]:
    """Which extras are there; LIBERO needs more than its package."""
    from aegis_envs.libero import preflight as libero  # with it comes gymnasium, which may be what is missing

    for module, extra in _EXTRAS.items():
        if find_spec(module) is None:
            yield Finding(
                "ok", f"{extra} is not installed (optional: uv pip install '.[{extra}]' in a clone)"
            )
        elif extra == "libero":
            yield from libero.preflight()
        elif extra == "metaworld":
            yield _metaworld()
        else:
            yield Finding("ok", f"{extra} is installed")


def _metaworld() -> Finding:
    works, said = attempt(METAWORLD)
    if not works:
        return Finding("warning", f"Meta-World could not be tried ({said})", "mend what is wrong above first")
    what, mend = json.loads(said)
    if what is not None:
        return Finding("error", what, mend)
    return Finding("ok", "metaworld is installed")


def check_gpu(vlm: str, training: Training) -> Iterator[Finding]:
    """Every CUDA device, and whether training the VLM fits."""
    works, said = attempt(GPU)
    if not works:
        yield Finding("error", f"torch does not start ({said})", "uv pip install --reinstall torch")
        return
    devices: list[tuple[str, int]] = json.loads(said)
    for index, (name, memory) in enumerate(devices):
        yield Finding("ok", f"GPU {index}: {name}, {memory / 2**30:.0f} GiB")
    if not devices and vlm == "embedded":
        yield Finding("ok", "torch sees no GPU, which the embedded VLM does not need")
    elif not devices:
        yield Finding(
            "warning",
            "torch sees no GPU",
            "a VLM of billions of parameters takes days on a CPU: install the driver, or train elsewhere",
        )
    yield from vlm_memory(vlm, training, max((memory for _, memory in devices), default=None))


def _reinstall(module: str) -> str:
    if module == _PACKAGE:
        return "uv pip install --reinstall . in a clone of it"
    return f"uv pip install --reinstall {module}"


def _within(installed: str, bounds: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(bounds).contains(installed, prereleases=True)
