"""Every protection through LeRobot's own commands: trained, resumed, and asked what its backbone answers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aegis_policy.protections import PROTECTIONS

_MORE = {
    "aegis": ["--policy.anchor=subspace+gaussian", "--policy.anchor_momentum=0.5"],
    "replay": ["--policy.replay_data={vqa}", "--policy.replay_batch_size=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("protection", PROTECTIONS)
def test_a_resumed_training_is_the_uninterrupted_one(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    fresh_flags: list[str],
    tiny_vqa: Path,
    tiny_vlm_dir: Path,
    tmp_path: Path,
    protection: str,
) -> None:
    wanted = [flag for flag in fresh_flags if not flag.startswith("--policy.anchor=")]
    if not PROTECTIONS[protection].needs_anchor:
        wanted = [flag for flag in wanted if not flag.startswith("--policy.anchor_path=")]
    wanted += [flag.format(vqa=tiny_vqa) for flag in _MORE.get(protection, [])]
    wanted.append(f"--policy.protection={protection}")
    for name, saves in (("whole", 4), ("stopped", 2)):
        done = shell(
            "lerobot-train", *wanted, f"--output_dir={tmp_path / name}", "--steps=4", f"--save_freq={saves}"
        )
        assert done.returncode == 0, done.stderr[-3000:]
    halfway = tmp_path / "stopped/checkpoints/000002"
    link = tmp_path / "stopped/checkpoints/last"
    link.unlink()
    link.symlink_to("000002")
    done = shell(
        "lerobot-train", f"--config_path={halfway / 'pretrained_model/train_config.json'}", "--resume=true"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints/000004/pretrained_model/model.safetensors")
        for name in ("whole", "stopped")
    )
    assert whole.keys() == resumed.keys()
    for name, weights in whole.items():
        assert weights.equal(resumed[name]), name
    checkpoint = tmp_path / "whole/checkpoints/000004/pretrained_model"
    done = shell(
        "aegis-vqa",
        f"--policy.path={checkpoint}",
        f"--pretrained={tiny_vlm_dir}",
        "--samples=6",
        f"--output_dir={tmp_path / 'vqa'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "vqa" / "results.json").read_text())
    assert results["n"] == 6 and results["pretrained"] is not None
