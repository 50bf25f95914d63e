"""Checks whether LIBERO is ready to run; says what is missing and where to put it, without importing it.

Importing LIBERO asks a question on the terminal where its config file is missing, and finds out about missing scene
assets only once an environment is made.
"""

import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path

from aegis_policy.support.files import atomic_write
from aegis_policy.support.finding import Finding

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
ASSETS_DATA_SET = "lerobot/libero-assets"
_ASSET_FOLDERS = (
    "articulated_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
    "stable_hope_objects",
    "scenes",
)
_MODULES = ("robosuite", "bddl")


def preflight(suites: Sequence[str] = SUITES) -> list[Finding]:
    """Check installation, config file, task files of `suites`, and scene assets, in this order.

    Returns:
        A finding a check. Assets that are absent are an error only where there is no way to the hub, from which LIBERO
        gets them by itself.
    """
    package = _package()
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if package is None or missing:
        absent = ", ".join(["hf-libero"] if package is None else missing)
        return [
            Finding(
                "error",
                f"LIBERO is not installed ({absent} is missing)",
                "uv pip install '.[libero]' in a clone of this project, on Linux",
            )
        ]
    places = _configured() if _config_file().is_file() else _defaults(package)
    return [
        Finding("ok", f"LIBERO is installed in {package}"),
        _check_config(places),
        *(_check_suite(suite, places) for suite in suites),
        _check_assets(package),
    ]


def write_config() -> Path:
    """Write the config file that LIBERO would ask for, if there is none, and return its path.

    Raises:
        RuntimeError: LIBERO is not installed.
    """
    path = _config_file()
    if not path.is_file():
        package = _package()
        if package is None:
            raise RuntimeError("LIBERO is not installed")
        lines = [f"{key}: {json.dumps(str(place))}\n" for key, place in _defaults(package).items()]
        with atomic_write(path) as beside:
            beside.write_text("".join(lines))
    return path


def _package() -> Path | None:
    """The folder of `libero.libero`."""
    found = importlib.util.find_spec("libero")
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(next(iter(found.submodule_search_locations))) / "libero"
    return folder if folder.is_dir() else None


def _config_file() -> Path:
    return Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"


def _defaults(package: Path) -> dict[str, Path]:
    return {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }


def _configured() -> dict[str, Path]:
    """What the config file says: flat YAML, a path a line."""
    pairs = (line.partition(":") for line in _config_file().read_text().splitlines() if ":" in line)
    return {key.strip(): Path(place.strip().strip("'\"")) for key, _, place in pairs}


def _check_config(places: dict[str, Path]) -> Finding:
    path = _config_file()
    if not path.is_file():
        return Finding("ok", f"{path} will be written by --env.type=aegis_libero")
    gone = [
        f"{key} ({places.get(key)})" for key in ("bddl_files", "init_states") if not _is_folder(places, key)
    ]
    if gone:
        return Finding(
            "error",
            f"{path} names folders that do not exist: {', '.join(gone)}",
            "delete that file, and it is written anew",
        )
    return Finding("ok", f"{path} names LIBERO's folders")


def _is_folder(places: dict[str, Path], key: str) -> bool:
    return key in places and places[key].is_dir()


def _check_suite(suite: str, places: dict[str, Path]) -> Finding:
    if suite not in SUITES:
        return Finding("error", f"{suite} is no suite of LIBERO", f"choose from {', '.join(SUITES)}")
    tasks = list((places.get("bddl_files", Path()) / suite).glob("*.bddl"))
    states = list((places.get("init_states", Path()) / suite).glob("*.pruned_init"))
    if not tasks or len(states) < len(tasks):
        return Finding(
            "error",
            f"{suite} has {len(tasks)} tasks and {len(states)} files of initial states",
            "install hf-libero again (uv pip install --reinstall hf-libero)",
        )
    return Finding("ok", f"{suite}: {len(tasks)} tasks")


def _check_assets(package: Path) -> Finding:
    """LIBERO takes a folder of its own if there is one, whole or not; then the cache; then the hub."""
    own, cache = package / "assets", Path("~/.cache/libero/assets").expanduser()
    folder = own if own.is_dir() else cache
    missing = [name for name in _ASSET_FOLDERS if not (folder / name).is_dir()]
    if not missing:
        return Finding("ok", f"scene assets in {folder}")
    download = f"hf download {ASSETS_DATA_SET} --repo-type=dataset --local-dir {folder}"
    if folder.is_dir() and len(missing) < len(_ASSET_FOLDERS):
        return Finding("error", f"scene assets in {folder} lack {', '.join(missing)}", download)
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return Finding(
            "error",
            f"scene assets are missing and HF_HUB_OFFLINE is set; they belong into {folder}",
            f"where there is a network: {download}",
        )
    return Finding(
        "warning",
        f"scene assets are not in {folder} yet",
        f"the first run gets them from the hub; without a network, beforehand: {download}",
    )
