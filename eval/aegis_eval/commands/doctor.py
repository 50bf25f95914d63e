"""`aegis-doctor`: what is missing on this machine or in these files, and the mend, a line each.

Imports nothing but the standard library and this project's own light modules: what may be broken is tried in a process
of its own.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

from aegis_eval.doctor.files import Training, check_anchor, check_dataset, check_policy, vlm_memory
from aegis_policy.support.finding import Finding

_PACKAGE = "lerobot_policy_aegis"
_OLDEST_PYTHON = (3, 12)
_TIMEOUT_S = 300
_IMPORTED = ("torch", "transformers", "mujoco", "lerobot", _PACKAGE)
"""In the order in which one brings the next down."""
_EXTRAS = {
    "metaworld": "metaworld",
    "gym_pusht": "pusht",
    "gym_aloha": "aloha",
    "libero": "libero",
    "ray": "ray",
}
"""Module -> extra that brings it."""
_RENDER = """
import time
from aegis_envs.tabletop.sim import TabletopSim
sim = TabletopSim()
sim.render("front", 96)
started = time.perf_counter()
for _ in range(20):
    sim.render("front", 96)
print(round(20 / (time.perf_counter() - started)))
"""
_GPU = """
import json, torch
seen = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
found = [torch.cuda.get_device_properties(i) for i in seen]
print(json.dumps([[each.name, each.total_memory] for each in found]))
"""
_METAWORLD = """
from aegis_envs.errors import MetaworldError
from aegis_envs.metaworld.env import require_metaworld
try:
    require_metaworld()
except MetaworldError as error:
    print(error)
"""
_FINGERPRINT = """
import sys
from aegis_policy.vlm.backbone import VLMBackbone
print(VLMBackbone.from_pretrained(sys.argv[1]).fingerprint())
"""


def main() -> None:
    """Entry point of `aegis-doctor`; status 1 if something is an error."""
    parser = argparse.ArgumentParser(
        prog="aegis-doctor", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--policy.path", dest="policy", type=Path, help="a checkpoint to be evaluated or trained on"
    )
    parser.add_argument("--policy.vlm", dest="vlm", default="embedded", help="the VLM to train")
    parser.add_argument("--policy.protection", dest="protection", default="aegis", help="how it is trained")
    parser.add_argument(
        "--policy.frozen_dtype", dest="frozen_dtype", default="float32", help="of what does not learn"
    )
    parser.add_argument(
        "--policy.optimizer_bits", dest="bits", type=int, default=32, help="of AdamW's moments"
    )
    parser.add_argument("--policy.anchor_path", dest="anchor", type=Path, help="the anchor to train with")
    parser.add_argument("--dataset.root", dest="dataset", type=Path, help="the LeRobotDataset to train on")
    given = parser.parse_args()
    findings: list[Finding] = []
    training = Training(given.protection, given.frozen_dtype, given.bits)
    for finding in examine(given.vlm, given.anchor, given.dataset, given.policy, training):
        findings.append(finding)
        print(f"{finding.status:8} {finding.what}", flush=True)
        if finding.mend:
            print(f"{'':8} -> {finding.mend}", flush=True)
    counts = [sum(each.status == status for each in findings) for status in ("error", "warning")]
    print(f"\nerrors: {counts[0]}, warnings: {counts[1]}")
    sys.exit(1 if counts[0] else 0)


def examine(
    vlm: str = "embedded",
    anchor: Path | None = None,
    dataset: Path | None = None,
    policy: Path | None = None,
    training: Training | None = None,
) -> Iterator[Finding]:
    """All findings, one by one as they are made.

    Args:
        vlm: `embedded`, a transformers directory or a hub id.
        anchor: file of an anchor of that VLM.
        dataset: folder of a LeRobotDataset.
        policy: `pretrained_model` folder of a checkpoint.
        training: how the VLM is trained, which decides how much memory it takes.
    """
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", check_python),
        ("the installed packages", check_packages),
        ("the imports", check_imports),
        ("rendering", check_rendering),
        ("the video backend", check_video),
        ("the simulators", check_simulators),
        ("the GPU", lambda: check_gpu(vlm, training or Training())),
    ]
    if policy is not None:
        checks.append(("the checkpoint", lambda: check_policy(policy, dataset)))
    if dataset is not None:
        checks.append(("the dataset", lambda: check_dataset(dataset)))
    if anchor is not None:
        checks.append(("the anchor", lambda: check_anchor(anchor, vlm, _fingerprint)))
    for name, check in checks:
        try:
            yield from check()
        except Exception as error:  # a check that fails must not hide the others
            yield Finding("error", f"{name} could not be checked ({type(error).__name__}: {error})")


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
    if _try(f"import {_PACKAGE}")[0]:
        yield Finding("ok", "LeRobot finds the plugin: --policy.type=aegis")
        return
    for module in _IMPORTED:
        works, said = _try(f"import {module}")
        if not works:
            yield Finding("error", f"import {module} fails ({said})", _reinstall(module))
            return


def check_rendering() -> Iterator[Finding]:
    """Whether MuJoCo draws off-screen, and how fast."""
    works, said = _try(_RENDER)
    platform = os.environ.get("MUJOCO_GL", "egl" if sys.platform == "linux" else "default")
    if works:
        yield Finding(
            "ok", f"MuJoCo renders off-screen (MUJOCO_GL={platform}), {said} images of 96 pixels a second"
        )
    else:
        yield Finding(
            "error",
            f"MuJoCo does not render off-screen with MUJOCO_GL={platform} ({said})",
            "apt-get install libegl1 libgl1-mesa-dri (Debian, Ubuntu), or set MUJOCO_GL=osmesa",
        )


def check_video() -> Iterator[Finding]:
    """What LeRobot decodes videos with."""
    if _try("import torchcodec.decoders")[0]:
        yield Finding("ok", "LeRobot reads videos with torchcodec")
    elif _try("import av")[0]:
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
    works, said = _try(_METAWORLD)
    if not works:
        return Finding("warning", f"Meta-World could not be tried ({said})", "mend what is wrong above first")
    if said:
        what, _, mend = said.rstrip(".").partition(": ")
        return Finding("error", what, mend)
    return Finding("ok", "metaworld is installed")


def check_gpu(vlm: str, training: Training) -> Iterator[Finding]:
    """Every CUDA device, and whether training the VLM fits."""
    works, said = _try(_GPU)
    if not works:
        yield Finding("error", f"torch does not start ({said})", "uv pip install --reinstall torch")
        return
    devices: list[tuple[str, int]] = json.loads(said)
    for index, (name, memory) in enumerate(devices):
        yield Finding("ok", f"GPU {index}: {name}, {memory / 2**30:.0f} GiB")
    if not devices:
        small = vlm == "embedded"
        yield Finding(
            "ok" if small else "warning",
            "torch sees no GPU" + (", which the embedded VLM does not need" if small else ""),
            ""
            if small
            else "a VLM of billions of parameters takes days on a CPU: install the driver, or train elsewhere",
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


def _fingerprint(vlm: str) -> str:
    """Of a VLM's weights, or why there is none.

    Raises:
        RuntimeError: it cannot be loaded.
    """
    works, said = _try(_FINGERPRINT, vlm)
    if not works:
        raise RuntimeError(said)
    return said


def _try(code: str, *arguments: str) -> tuple[bool, str]:
    """Run code in a process of its own: whether it worked, and the last line it printed."""
    environment = {"MUJOCO_GL": "egl"} if sys.platform == "linux" else {}
    command: Sequence[str] = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            env=environment | dict(os.environ),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer after {_TIMEOUT_S} s; a download may take longer, so make it first"
    if done.returncode < 0:
        return False, f"ended by signal {-done.returncode}"
    said = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, said[-1] if said else ""
