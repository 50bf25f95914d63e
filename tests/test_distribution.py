"""What is published: the wheel and the sdist of a clean checkout hold the program and nothing else, and suffice."""

import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from environments import ROOT, new_environment

pytestmark = pytest.mark.tools

_PACKAGES = {"aegis_policy": ".", "aegis_envs": "envs", "aegis_eval": "eval"}
"""Package -> the folder of the repository that holds it."""

_IMPORT_ALL = """
import importlib, sys
from pathlib import Path

folder = Path(sys.argv[1])
for path in sorted([*folder.glob("lerobot_policy_aegis.py"), *folder.glob("aegis_*/**/*.py")]):
    name = ".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert Path(module.__file__) == path, f"{name} comes from {module.__file__}"
    print(name)
"""
"""Imports every module of our packages in a folder, and prints its name."""


def _files() -> list[str]:
    """The repository's files, those not committed yet too."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted(name for name in named if (ROOT / name).is_file())


def _shipped() -> set[str]:
    """Files of the packages, by the path they are installed at."""
    found = {"lerobot_policy_aegis.py"}
    for package, folder in _PACKAGES.items():
        inside = (ROOT / folder / package).resolve()
        found |= {
            (Path(package) / (ROOT / name).relative_to(inside)).as_posix()
            for name in _files()
            if (ROOT / name).is_relative_to(inside)
        }
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of a copy of the repository and the wheel made from that sdist.

    A copy, for setuptools would put into the next wheel what it finds in a `build/lib` that an earlier one left.
    """
    checkout = tmp_path_factory.mktemp("checkout")
    for name in _files():
        copy = checkout / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy)
    folder = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == _shipped()


def test_the_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    files = {name for name in files if ".egg-info/" not in name}
    by_setuptools = {"PKG-INFO", "setup.cfg"}
    sources = {(Path(_PACKAGES.get(name.split("/")[0], ".")) / name).as_posix() for name in _shipped()}
    assert files - by_setuptools == {*sources, "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}


def test_an_index_would_take_both(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *built.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2


def test_every_module_of_the_wheel_is_imported_in_one_process(wheel: Path, tmp_path: Path) -> None:
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    settings = {**os.environ, "PYTHONPATH": str(unpacked), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _IMPORT_ALL, unpacked]
    done = subprocess.run(
        command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == sum(name.endswith(".py") for name in _shipped())


@pytest.mark.slow
def test_the_wheel_alone_makes_an_environment_that_records_trains_and_asks(
    wheel: Path, tmp_path: Path
) -> None:
    programs = new_environment(tmp_path / "venv", str(wheel))
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    checkpoint = "outputs/train/checkpoints/last/pretrained_model"
    commands = [
        ["python", "-c", _IMPORT_ALL, str(site)],
        ["aegis-doctor"],
        ["aegis-vqa", "--vlm=embedded", "--samples=50", "--output_dir=outputs/vlm"],
        [*shlex.split("aegis-record --env.type=aegis_tabletop --episodes=2"), "--root=data/tabletop"],
        [
            *shlex.split("lerobot-train --policy.type=aegis --policy.device=cpu --output_dir=outputs/train"),
            *shlex.split("--dataset.repo_id=local/tabletop --dataset.root=data/tabletop"),
            *shlex.split("--steps=2 --save_freq=2 --batch_size=4 --num_workers=0"),
        ],
        [*shlex.split("aegis-vqa --samples=50 --output_dir=outputs/policy"), f"--policy.path={checkpoint}"],
    ]
    settings = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    for name in (
        "PYTHONPATH",
        "PYTHONDONTWRITEBYTECODE",
    ):  # without compiled modules each command starts slowly
        settings.pop(name, None)
    for program, *arguments in commands:
        done = subprocess.run(
            [programs / program, *arguments],
            cwd=tmp_path,
            env=settings,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{program}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert (tmp_path / "outputs" / "policy" / "results.json").is_file()
