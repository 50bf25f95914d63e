"""`aegis-doctor` on a machine where all is well, on broken ones, and on files that do not fit each other."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_data import write_random_dataset
from safetensors.torch import save_file

from aegis_eval.commands.anchor import AnchorConfig, make_anchor
from aegis_eval.commands.doctor import check_imports, check_rendering, check_simulators, examine
from aegis_eval.doctor.files import (
    Training,
    check_anchor,
    check_dataset,
    check_policy,
    read_header,
    vlm_memory,
)
from aegis_policy.support.finding import Finding
from aegis_policy.vlm.backbone import VLMBackbone


def told(findings) -> str:
    return " | ".join(f"{each.status}: {each}" for each in findings)


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys; old = set(sys.modules); import aegis_eval.commands.doctor; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()} - {"aegis_eval", "aegis_policy"}
    assert loaded <= set(sys.stdlib_module_names)


def test_all_is_well_here(tiny_vlm_dir: Path, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path):
    anchor = tmp_path / "anchor.safetensors"
    make_anchor(
        AnchorConfig(vlm=str(tiny_vlm_dir), vqa="tabletop", kinds=["gaussian"], samples=4, out=anchor)
    )
    findings = list(examine(str(tiny_vlm_dir), anchor, tiny_dataset))
    assert [str(each) for each in findings if each.status == "error"] == []
    found = told(findings)
    for part in (
        "ok: Python 3.",
        f"lerobot {__import__('lerobot').__version__}",
        "LeRobot finds the plugin",
        "MuJoCo renders off-screen (MUJOCO_GL=egl)",
        "LeRobot reads videos with",
        "libero is",
        "3 episodes, 18 frames at 10 a second, cameras front, wrist, state 5, action 3",
        "4 samples of tabletop",
    ):
        assert part in found


def test_the_first_broken_import_is_named_and_the_rest_still_checked(tmp_path: Path):
    (tmp_path / "torch.py").write_text(
        "raise ImportError('libcudart.so.12: cannot open shared object file')\n"
    )
    program = Path(sys.executable).with_name("aegis-doctor")
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/bin"},
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "import torch fails (ImportError: libcudart.so.12: cannot open shared object file)" in done.stdout
    assert "-> uv pip install --reinstall torch" in done.stdout
    assert "MuJoCo renders off-screen" in done.stdout
    assert "errors: 2, warnings:" in done.stdout, "the imports, and the question after the GPU"


def test_a_crash_is_told_from_an_exception(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "mujoco.py").write_text("import os; os.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "error: MuJoCo does not render off-screen" in told(check_rendering())
    assert "ended by signal 11" in told(check_rendering())
    (tmp_path / "transformers.py").write_text("import os; os.kill(os.getpid(), 11)\n")
    assert "import transformers fails (ended by signal 11)" in told(check_imports())


def edited(source: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(source, target)
    path = target / "meta" / "info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


def test_datasets_that_cannot_be_learned_from_are_named(tiny_dataset: Path, tmp_path: Path):
    assert "holds no meta/info.json" in told(check_dataset(tmp_path))
    old = edited(tiny_dataset, tmp_path / "old", codebase_version="v2.1", total_tasks=0)
    assert "error: " in told(check_dataset(old)) and "has the format v2.1" in told(check_dataset(old))
    assert "warning: " in told(check_dataset(old)) and "has no instructions" in told(check_dataset(old))
    mute = write_random_dataset(tmp_path / "mute", {}, state=2, action=2, tasks=[" "])
    assert "has no instructions" in told(check_dataset(mute))
    assert "has no instructions" not in told(check_dataset(tiny_dataset))
    features = json.loads((tiny_dataset / "meta" / "info.json").read_text())["features"]
    blind = {name: each for name, each in features.items() if "images" not in name and name != "action"}
    found = told(check_dataset(edited(tiny_dataset, tmp_path / "blind", features=blind)))
    assert "has no camera (observation.images.NAME), no action" in found
    unknown = edited(tiny_dataset, tmp_path / "unknown")
    (unknown / "meta" / "stats.json").unlink()
    assert "has no mean and std of observation.state, action" in told(check_dataset(unknown))
    features["action"]["shape"] = [2, 2]
    assert "action of" in told(check_dataset(edited(tiny_dataset, tmp_path / "square", features=features)))


def test_a_checkpoint_is_compared_with_a_dataset(tiny_checkpoint: Path, tiny_dataset: Path, tmp_path: Path):
    assert "error: observation.state has the shape [5] in the dataset and [8] in the checkpoint" in told(
        check_policy(tiny_checkpoint, tiny_dataset)
    )
    features = json.loads((tiny_dataset / "meta" / "info.json").read_text())["features"]
    features["observation.images.top"] = features.pop("observation.images.front")
    other = edited(tiny_dataset, tmp_path / "other", features=features)
    found = told(check_policy(tiny_checkpoint, other))
    assert "the dataset has no observation.images.front" in found and "cameras it does not look at: " in found
    assert """--rename_map='{"observation.images.top": "observation.images.front"}'""" in found
    del features["observation.state"]
    found = told(
        check_policy(tiny_checkpoint, edited(tiny_dataset, tmp_path / "stateless", features=features))
    )
    assert "has no observation.images.front, observation.state" in found and "--rename_map" not in found
    features["observation.state"] = {"dtype": "float32", "shape": [8], "names": None}
    features["observation.images.front"] = features["observation.images.top"]
    features["action"]["shape"] = [4]
    fitting = edited(tiny_dataset, tmp_path / "fitting", features=features)
    assert "ok: the dataset has all that the checkpoint looks at" in told(
        check_policy(tiny_checkpoint, fitting)
    )
    assert "holds no config.json" in told(check_policy(tmp_path, None))


def test_an_incomplete_checkpoint_is_named(tiny_checkpoint: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    (copy / "model.safetensors").unlink()
    assert "lacks model.safetensors" in told(check_policy(copy, None))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"type": "act"}))
    assert "is a policy of type act, not aegis" in told(check_policy(copy, None))


def test_an_anchor_is_compared_with_the_vlm(tiny_vlm_dir: Path, tmp_path: Path):
    path = tmp_path / "anchor.safetensors"
    assert "there is no anchor at" in told(check_anchor(path, "embedded", str))
    save_file({"x": torch.zeros(2)}, path)
    assert "is no anchor: make it with aegis-anchor --vlm=embedded" in told(
        check_anchor(path, "embedded", str)
    )
    make_anchor(AnchorConfig(vlm=str(tiny_vlm_dir), vqa="tabletop", kinds=["gaussian"], samples=4, out=path))
    own = VLMBackbone.from_pretrained(str(tiny_vlm_dir)).fingerprint()
    assert told(check_anchor(path, str(tiny_vlm_dir), lambda _: own)).startswith("ok")
    assert f"its fingerprint is {own} and that of x is y" in told(check_anchor(path, "x", lambda _: "y"))


def test_memory_is_counted_from_the_files(tmp_path: Path):
    shapes = {
        "model.language_model.layers.0.mlp.weight": (64, 32),
        "model.vision_tower.layers.0.weight": (16, 16),
    }
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "model.safetensors")
    needed = 4 * (64 * 32 + 16 * 16) + 16 * 64 * 32
    assert [each.status for each in vlm_memory(str(tmp_path), Training(), needed)] == ["ok"]
    assert [each.status for each in vlm_memory(str(tmp_path), Training("none"), needed - 4 * 64 * 32)] == [
        "ok"
    ]
    assert [each.status for each in vlm_memory(str(tmp_path), Training("lora"), 4 * (64 * 32 + 16 * 16))] == [
        "ok"
    ]
    (found,) = vlm_memory(str(tmp_path), Training(), needed - 1)
    assert (
        found.status == "error" and "--policy.optimizer_bits=8, --policy.frozen_dtype=bfloat16" in found.mend
    )
    small = Training(frozen_dtype="bfloat16", optimizer_bits=8)
    needed = 2 * 16 * 16 + (4 + 4 + 4 + 2) * 64 * 32
    assert [each.status for each in vlm_memory(str(tmp_path), small, needed)] == ["ok"]
    (found,) = vlm_memory(str(tmp_path), small, needed - 1)
    assert found.mend.startswith("--policy.protection=lora take less")
    assert [each.status for each in vlm_memory("google/paligemma2-3b-mix-224", Training(), None)] == [
        "warning"
    ]
    assert list(vlm_memory("embedded", Training(), None)) == []


def test_what_is_no_safetensors_file_is_said(tmp_path: Path):
    for content in (b"", b"12", b"\xff" * 30, b"\x05\x00\x00\x00\x00\x00\x00\x00hello"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no safetensors file"):
            read_header(path)


def test_a_check_that_fails_does_not_hide_the_others(tiny_dataset: Path, tmp_path: Path, monkeypatch):
    broken = edited(tiny_dataset, tmp_path / "broken")
    (broken / "meta" / "info.json").write_text("{")
    for name in ("check_packages", "check_imports", "check_rendering", "check_video", "check_simulators"):
        monkeypatch.setattr(f"aegis_eval.commands.doctor.{name}", lambda: [Finding("ok", "checked")])
    monkeypatch.setattr("aegis_eval.commands.doctor.check_gpu", lambda vlm, training: [])
    found = list(examine(dataset=broken))
    assert (
        found[-1].status == "error" and "the dataset could not be checked (JSONDecodeError" in found[-1].what
    )


def test_a_mujoco_with_which_meta_world_cannot_start_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    pytest.importorskip("metaworld")
    (tmp_path / "sitecustomize.py").write_text("import mujoco\nmujoco.mjNEQDATA = 12\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = [each for each in check_simulators() if "Meta-World" in each.what]
    assert found.status == "error" and found.what.startswith("Meta-World does not run with MuJoCo")
    assert found.mend == "uv pip install '.[metaworld]' in a clone of this project"
    monkeypatch.setenv("MUJOCO_GL", "wrong")
    (found,) = [each for each in check_simulators() if "Meta-World" in each.what]
    assert found.status == "warning" and "could not be tried" in found.what
