"""`aegis-doctor` where all is well and where nothing is; what it finds is tested in `tests/eval/doctor`."""

import subprocess
import sys
from pathlib import Path

from findings import edited, told

from aegis_eval.commands.anchor import AnchorConfig
from aegis_eval.commands.doctor import examine
from aegis_eval.commands.work.anchor import make_anchor
from aegis_eval.doctor import machine
from aegis_eval.doctor.machine import Attempt


def test_it_needs_nothing_but_the_standard_library():
    code = "import sys; old = set(sys.modules); import aegis_eval.commands.doctor; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()} - {"aegis_eval", "aegis_policy"}
    assert loaded <= set(sys.stdlib_module_names)


def test_all_is_well_here(tiny_vlm_dir: Path, tiny_dataset: Path, tiny_checkpoint: Path, tmp_path: Path):
    anchor = tmp_path / "anchor.safetensors"
    make_anchor(
        AnchorConfig(vlm=str(tiny_vlm_dir), vqa="tabletop", kinds=["subspace"], samples=4, out=anchor)
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


def test_it_runs_where_nothing_can_be_imported(tmp_path: Path):
    for module in ("torch", "transformers", "lerobot", "mujoco"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('libcudart.so.12: cannot open it')\n")
    program = Path(sys.executable).with_name("aegis-doctor")
    done = subprocess.run(
        [program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/bin"},
    )
    assert done.returncode == 1 and done.stderr == ""
    assert "import torch fails (ImportError: libcudart.so.12: cannot open it)" in done.stdout
    assert "-> uv pip install --reinstall torch" in done.stdout
    assert "MuJoCo does not render off-screen" in done.stdout and "LeRobot reads videos" in done.stdout
    assert "errors: 4, warnings:" in done.stdout, (
        "the imports, rendering, the question after the GPU, the VLM"
    )


def test_a_check_that_fails_does_not_hide_the_others(
    tiny_dataset: Path, tmp_path: Path, attempts: dict[str, Attempt]
):
    broken = edited(tiny_dataset, tmp_path / "broken")
    (broken / "meta" / "info.json").write_text("{")
    attempts[machine.GPU] = Attempt(True, "no JSON")
    errors = [each.what for each in examine(dataset=broken, anchor=tmp_path) if each.status == "error"]
    gpu, dataset, anchor = errors
    assert gpu.startswith("the GPU could not be checked (JSONDecodeError")
    assert dataset.startswith(f"{broken / 'meta' / 'info.json'} cannot be read (JSONDecodeError")
    assert "anchor" in anchor


def test_a_wrong_vlm_is_one_error_and_says_what_was_not_looked_at(
    tmp_path: Path, attempts: dict[str, Attempt]
):
    (tmp_path / "config.json").write_text("{}")
    findings = list(examine(str(tmp_path), tmp_path / "anchor.safetensors"))
    (error,) = [each.what for each in findings if each.status == "error"]
    assert f"--policy.vlm={tmp_path}" in error
    assert (findings[-1].status, findings[-1].what) == ("warning", "the anchor was not looked at")
