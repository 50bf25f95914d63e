"""`aegis-demo` end to end: the real commands, on a few episodes and steps."""

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

from aegis_envs.tabletop.env import seeded_episode
from aegis_eval.commands.demo import DemoConfig
from aegis_eval.commands.work.demo import demo
from aegis_eval.results.run_file import RunFile
from aegis_policy.pretrained import EMBEDDED_BASE
from aegis_policy.support.errors import AegisError


def test_quick_demo_ends_with_a_page_and_does_not_repeat_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = demo(DemoConfig(output_dir=tmp_path / "demo", quick=True))
    first = capsys.readouterr().out
    assert page == tmp_path / "demo" / "report.html"
    assert first.strip().endswith(f"wrote {page}")
    for name in ("Pretrained", "Base policy", "Unprotected", "AEGIS"):
        assert name in first
        assert name.lower() in page.read_text().lower()
    manifest = json.loads((page.parent / "manifest.json").read_text())
    plan = [stage for job in manifest for stage in job["stages"]]
    for protection in ("none", "aegis"):
        results = json.loads((tmp_path / "demo" / protection / "vqa" / "results.json").read_text())
        assert results["n"] == 24
        videos = list((tmp_path / "demo" / protection / "rollouts").rglob("*.mp4"))
        assert videos
        assert all(len(iio.imread(video)) > 1 for video in videos)
        found = RunFile.read(page.parent / "results" / f"{protection}.json").measured
        assert (
            found.keys() == {"training", "rollouts", "vqa"}
            and found["vqa"]["accuracy"] == results["accuracy"]
        )
        (trained,) = (stage["command"] for stage in plan if stage["name"] == f"{protection}-training")
        assert f"--policy.path={EMBEDDED_BASE}" in trained
    told = seeded_episode("bowl", "test", 0).instruction
    assert f"initial state 0: “{told}”" in page.read_text(), "films of the same scene, under what was said"
    log = (tmp_path / "demo" / "logs" / "aegis-training.log").read_text()
    assert "blocked_energy" in log

    page.unlink()
    command = [Path(sys.executable).with_name("aegis-demo"), "--quick", f"--output_dir={page.parent}"]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("done before") == 8
    assert page.is_file()


def test_a_demo_with_other_flags_needs_another_folder(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(json.dumps({"steps": 1}))
    with pytest.raises(AegisError, match="results of other flags \\(--steps=1, not 400"):
        demo(DemoConfig(output_dir=tmp_path))


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(AegisError, match="already holds other files"):
        demo(DemoConfig(output_dir=tmp_path))
    assert [item.name for item in tmp_path.iterdir()] == ["thesis.tex"]
