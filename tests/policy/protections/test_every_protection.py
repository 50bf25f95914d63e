"""Every protection through LeRobot's own commands: trained, resumed, and asked what its backbone answers.

LeRobot resumes with another order of samples, so a resumed run is not the uninterrupted one bit for bit.
"""

import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from environments import packages_beside
from safetensors.torch import load_file

from aegis_policy.protections import PROTECTIONS

_MORE = {
    "aegis": ["--policy.anchor=subspace+gaussian"],
    "aegis in less memory": [
        "--policy.anchor=subspace",
        "--policy.dtype=bfloat16",
        "--policy.frozen_dtype=bfloat16",
        "--policy.optimizer_bits=8",
        "--policy.expert_optimizer=muon",
    ],
    "replay": ["--policy.replay_data={vqa}", "--policy.replay_batch_size=2"],
    "knowledge_insulation": ["--policy.replay_data={vqa}", "--policy.replay_batch_size=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*PROTECTIONS, "aegis in less memory"])
def test_training_goes_on_from_a_checkpoint_and_its_backbone_can_be_asked(
    shell: Callable[..., subprocess.CompletedProcess[str]],
    fresh_flags: list[str],
    tiny_vqa: Path,
    tiny_vlm_dir: Path,
    tmp_path: Path,
    case: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    protection = case.split()[0]
    run = partial(shell, fork=case in PROTECTIONS)  # a fork has its path from before, and no packages beside
    if "--policy.optimizer_bits=8" in _MORE.get(case, []):
        monkeypatch.setenv("PYTHONPATH", str(packages_beside(tmp_path / "beside", "bitsandbytes>=0.50")))
    wanted = [flag for flag in fresh_flags if not flag.startswith("--policy.anchor=")]
    if not PROTECTIONS[protection].needs_anchor:
        wanted = [flag for flag in wanted if not flag.startswith("--policy.anchor_path=")]
    wanted += [flag.format(vqa=tiny_vqa) for flag in _MORE.get(case, [])]
    wanted.append(f"--policy.protection={protection}")
    done = run("lerobot-train", *wanted, f"--output_dir={tmp_path / 'run'}", "--steps=2", "--save_freq=2")
    assert done.returncode == 0, done.stderr[-3000:]
    config = tmp_path / "run/checkpoints/000002/pretrained_model/train_config.json"
    done = run("lerobot-train", f"--config_path={config}", "--resume=true", "--steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "run/checkpoints/000004/pretrained_model"
    assert load_file(checkpoint / "protection_state.safetensors")["steps"] == 4
    before, after = (load_file(folder / "model.safetensors") for folder in (config.parent, checkpoint))
    assert before.keys() == after.keys()
    moved = {name.split(".")[0] for name, weights in after.items() if not weights.equal(before[name])}
    assert moved == ({"expert"} if protection in ("freeze", "stop_gradient") else {"expert", "vlm"})
    done = run(
        "aegis-vqa",
        f"--policy.path={checkpoint}",
        f"--pretrained={tiny_vlm_dir}",
        "--samples=6",
        f"--output_dir={tmp_path / 'vqa'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "vqa" / "results.json").read_text())
    assert results["n"] == 6 and results["pretrained"] is not None
