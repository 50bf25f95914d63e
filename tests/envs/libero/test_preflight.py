"""The check before LIBERO, on a folder laid out as hf-libero 0.1.4 is installed, with and without scene assets."""

import sys
from pathlib import Path

import pytest

from aegis_envs.libero.configuration import AegisLiberoEnv
from aegis_envs.libero.preflight import SUITES, preflight, write_config
from aegis_policy.support.errors import AegisError

ASSETS = (
    "articulated_objects",
    "stable_scanned_objects",
    "turbosquid_objects",
    "stable_hope_objects",
    "scenes",
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder; `libero`, `robosuite` and `bddl` can be found there and would fail if they were imported."""
    package = tmp_path / "site" / "libero" / "libero"
    for suite in SUITES:
        for kind, ending in (("bddl_files", "bddl"), ("init_files", "pruned_init")):
            (package / kind / suite).mkdir(parents=True)
            (package / kind / suite / f"pick_up_the_bowl.{ending}").touch()
    for module in ("libero/__init__.py", "robosuite.py", "bddl.py"):
        (tmp_path / "site" / module).write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    return tmp_path


def add_assets(folder: Path, *left_out: str) -> None:
    for name in set(ASSETS) - set(left_out):
        (folder / name).mkdir(parents=True)


def faults(*suites: str) -> list[str]:
    return [str(each) for each in preflight(suites or SUITES) if each.status != "ok"]


def test_all_is_well_with_assets_in_the_cache_or_in_the_package(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets")
    assert faults() == []
    (machine / ".cache").rename(machine / "elsewhere")
    add_assets(machine / "site" / "libero" / "libero" / "assets")
    assert faults() == []


def test_missing_assets_are_named_with_the_place_where_they_belong(machine: Path, monkeypatch):
    (fault,) = faults()
    cache = machine / ".cache" / "libero" / "assets"
    assert f"they belong into {cache}" in fault
    assert f"hf download lerobot/libero-assets --repo-type=dataset --local-dir {cache}" in fault
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert [each.status for each in preflight() if each.status != "ok"] == ["warning"], (
        "the hub can be reached"
    )


def test_a_download_that_broke_off_is_not_taken_for_the_assets(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets", "scenes", "turbosquid_objects")
    (fault,) = faults()
    assert "lack turbosquid_objects, scenes" in fault


def test_a_folder_in_the_package_is_the_one_that_libero_takes(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets")
    add_assets(machine / "site" / "libero" / "libero" / "assets", "scenes")
    (fault,) = faults()
    assert "site/libero/libero/assets lack scenes" in fault


def test_a_config_file_of_another_installation_is_found_out(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets")
    config = machine / ".libero" / "config.yaml"
    config.parent.mkdir()
    config.write_text("bddl_files: /old/bddl_files\ninit_states: /old/init_files\n")
    (fault, *_) = faults("libero_10")
    assert "names folders that do not exist: bddl_files (/old/bddl_files), init_states" in fault
    assert "delete that file" in fault


def test_the_config_file_is_written_once_and_understood(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets")
    path = write_config()
    assert path == machine / ".libero" / "config.yaml"
    assert faults() == []
    assert f'bddl_files: "{machine}/site/libero/libero/bddl_files"' in path.read_text()
    path.write_text("mine: 1\n")
    write_config()
    assert path.read_text() == "mine: 1\n"


def test_suites_are_checked_one_by_one(machine: Path):
    add_assets(machine / ".cache" / "libero" / "assets")
    (machine / "site/libero/libero/init_files/libero_goal/pick_up_the_bowl.pruned_init").unlink()
    (fault,) = faults()
    assert "libero_goal has 1 tasks and 0 files of initial states" in fault
    (fault,) = faults("libero_11")
    assert "libero_11 is no suite of LIBERO: choose from libero_spatial" in fault


def test_what_is_not_installed_is_named(machine: Path):
    (machine / "site" / "robosuite.py").unlink()
    assert "robosuite is missing" in faults()[0]
    sys.path.remove(str(machine / "site"))
    (fault,) = faults()
    assert "hf-libero is missing" in fault and "uv pip install '.[libero]'" in fault


def test_evaluation_says_what_is_missing_before_libero_is_imported(machine: Path):
    with pytest.raises(AegisError, match=r"--env\.type=aegis_libero cannot run: scene assets are missing"):
        AegisLiberoEnv(task="libero_10,libero_goal").create_envs(1)
    assert not (machine / ".libero").exists()
    add_assets(machine / ".cache" / "libero" / "assets")
    with pytest.raises(RuntimeError, match="imported"):
        AegisLiberoEnv(task="libero_10").create_envs(1)
    assert (machine / ".libero" / "config.yaml").is_file(), "or LIBERO would ask for it"
