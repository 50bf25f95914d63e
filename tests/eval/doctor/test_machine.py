"""What `aegis-doctor` makes of a machine; what it tries there is told, not tried."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch
from findings import told
from safetensors.torch import save_file

from aegis_eval.doctor import machine
from aegis_eval.doctor.files import Training
from aegis_eval.doctor.machine import Attempt, attempt
from aegis_policy.support import opengl


def test_a_crash_is_told_from_an_exception_and_from_success():
    assert attempt("print('noise'); print('last line')") == (True, "last line")
    assert attempt("raise ValueError('no file')") == (False, "ValueError: no file")
    assert attempt("import os; os.kill(os.getpid(), 11)") == (False, "ended by signal 11")
    assert attempt("import sys; print(sys.argv[1:])", "x") == (True, "['x']")


def test_what_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "_TIMEOUT_S", 0.1)
    assert attempt("import time; time.sleep(60)").said.startswith("no answer after 0.1 s")


def test_the_first_import_that_fails_is_named(attempts: dict[str, Attempt]):
    attempts["import lerobot_policy_aegis"] = Attempt(False, "anything")
    attempts["import transformers"] = Attempt(False, "ended by signal 11")
    attempts["import lerobot"] = Attempt(False, "it needs transformers")
    (found,) = machine.check_imports()
    assert found.what == "import transformers fails (ended by signal 11)"
    assert found.mend == "uv pip install --reinstall transformers"


def test_rendering_that_fails_is_an_error_with_its_platform(
    attempts: dict[str, Attempt], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(opengl, "draws", lambda platform: platform == "egl")
    attempts[machine.RENDER] = Attempt(False, "ended by signal 6")
    (found,) = machine.check_rendering()
    assert found.status == "error"
    assert found.what == "MuJoCo does not render off-screen with MUJOCO_GL=osmesa (ended by signal 6)"
    assert found.mend == "set MUJOCO_GL=egl, which works here"


@pytest.mark.parametrize(
    ("broken", "status", "sentence"),
    [
        ([], "ok", "LeRobot reads videos with torchcodec"),
        (["torchcodec.decoders"], "warning", "LeRobot reads videos with PyAV"),
        (["torchcodec.decoders", "av"], "error", "neither torchcodec nor PyAV"),
    ],
)
def test_videos_are_read_by_what_there_is(
    broken: list[str], status: str, sentence: str, attempts: dict[str, Attempt]
):
    attempts |= {f"import {module}": Attempt(False, "no") for module in broken}
    (found,) = machine.check_video()
    assert found.status == status and found.what.startswith(sentence)


def test_a_gpu_is_named_and_its_absence_matters_for_a_large_vlm_alone(
    attempts: dict[str, Attempt], tmp_path: Path
):
    assert [each.status for each in machine.check_gpu("embedded", Training())] == ["ok"]
    save_file({"model.language_model.layers.0.weight": torch.zeros(64, 64)}, tmp_path / "model.safetensors")
    assert [each.status for each in machine.check_gpu(str(tmp_path), Training())] == ["warning", "ok"]
    attempts[machine.GPU] = Attempt(True, json.dumps([["Small One", 2**17]]))
    named, memory = machine.check_gpu(str(tmp_path), Training())
    assert named.what == "GPU 0: Small One, 0 GiB" and memory.status == "ok"
    attempts[machine.GPU] = Attempt(True, json.dumps([["Smaller One", 2**16]]))
    assert [each.status for each in machine.check_gpu(str(tmp_path), Training())] == ["ok", "error"]


def test_a_package_that_is_missing_or_of_another_version_is_named(monkeypatch: pytest.MonkeyPatch):
    installed = {"lerobot_policy_aegis": "1.0", "torch": "2.11.0", "datasets": "3.0"}

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError
        return installed[name]

    wanted = ["torch>=2.7", "datasets>=4", "lerobot[dataset]>=0.6.1,<0.7", 'ray>=2; extra == "ray"']
    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine, "requires", lambda _: wanted)
    found = told(machine.check_packages())
    assert "error: datasets 3.0 is not >=4: uv pip install 'datasets>=4'" in found
    assert "error: lerobot is not installed: uv pip install 'lerobot[dataset]>=0.6.1,<0.7'" in found
    assert "torch 2.11.0" in found and "ray" not in found


def test_a_mujoco_with_which_meta_world_cannot_start_is_an_error(attempts: dict[str, Attempt]):
    pytest.importorskip("metaworld")
    attempts[machine.METAWORLD] = Attempt(True, json.dumps(["Meta-World does not run with X", "install Y"]))
    (found,) = [each for each in machine.check_simulators() if "Meta-World" in each.what]
    assert (found.status, found.what, found.mend) == (
        "error",
        "Meta-World does not run with X",
        "install Y",
    )
    attempts[machine.METAWORLD] = Attempt(False, "ended by signal 11")
    (found,) = [each for each in machine.check_simulators() if "Meta-World" in each.what]
    assert found.status == "warning" and "could not be tried (ended by signal 11)" in found.what
