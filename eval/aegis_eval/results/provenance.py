"""Where a result comes from: command, time, code, versions and machine, as plain JSON-able data."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("lerobot_policy_aegis", "lerobot", "torch", "transformers", "mujoco", "numpy")


def provenance(seed: int, seconds: float, **more: Any) -> dict[str, Any]:
    """What is needed to make a result again.

    Args:
        seed: the seed of the run.
        seconds: how long it took.
        more: anything else worth keeping, JSON-able.
    """
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **surroundings(),
        "seed": seed,
        "seconds": round(seconds, 1),
        **more,
    }


def surroundings() -> dict[str, Any]:
    """Code, versions and machine that a result comes from."""
    return {
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "hardware": hardware(),
    }


def command_line() -> str:
    """This process's command as one would type it in the checkout, torchrun and all."""
    program = Path(sys.argv[0])
    named = ["python", _from_here(program)] if program.suffix == ".py" else [program.name]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        launched = named[-1] if program.suffix == ".py" else f".venv/bin/{program.name}"
        named = ["torchrun", f"--nproc_per_node={processes}", launched]
    return shlex.join([*named, *sys.argv[1:]])


def _from_here(program: Path) -> str:
    try:
        return str(program.resolve().relative_to(Path.cwd()))
    except ValueError:
        return program.name


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, "+changes" if files differ; None outside one.

    An environment inside somebody else's checkout does not make that checkout ours.
    """
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != Path(__file__).resolve().parents[3]:
            return None
        commit = _git("rev-parse", "--short=12", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, and the CUDA device if there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "gpu": _gpu(),
    }


@cache
def _gpu() -> str | None:
    """The CUDA device's name, asked in another process by one that does not use the device.

    Whoever asks holds memory on it from then on, and all of a device that takes one process at a time: an experiment
    would keep its own commands from it.
    """
    import torch  # here, for commands that need it for nothing else have done their work by now

    if not torch.cuda.is_available():
        return None
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
