"""Data parallelism changes nothing but rounding: two ranks equal one process on the same global batch."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_steps import MakePolicy

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.mark.parametrize(
    ("protection", "options", "acted"),
    [
        ("aegis", {"anchor": "gaussian"}, "conflict_fraction"),
        ("aegis", {"anchor": "kronecker"}, "blocked_energy"),
        (
            "aegis",
            {"anchor": "gaussian", "anchor_tokens": "apart", "anchor_momentum": 0.9},
            "conflict_fraction",
        ),
        ("w2_penalty", {"penalty": 0.1}, "anchor_distance"),
        ("replay", {"replay_batch_size": 2}, "vqa_loss"),
        ("knowledge_insulation", {}, "action_token_loss"),
    ],
)
def test_two_processes_equal_one_on_the_same_global_batch(
    make_policy: MakePolicy,
    make_batch: Callable[..., dict[str, Any]],
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    protection: str,
    options: dict[str, Any],
    acted: str,
) -> None:
    policy = make_policy(protection, **options, optimizer_lr=1e-3, optimizer_lr_backbone=1e-3, flow_samples=2)
    policy.save_pretrained(tmp_path / "policy")
    batches = [make_batch(size=6, seed=seed) for seed in range(4)]
    torch.save(batches, tmp_path / "batches.pt")

    arguments = [str(tmp_path / name) for name in ("policy", "batches.pt", "out")]
    done = shell("torchrun", "--nproc_per_node=2", "--standalone", str(SCRIPT), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in range(2))
    if protection == "replay":  # whose batch is a rank's
        policy.config.replay_batch_size *= 2
        policy.save_pretrained(tmp_path / "policy")
    alone = runpy.run_path(str(SCRIPT))["train"](
        tmp_path / "policy", tmp_path / "batches.pt", rank=0, ranks=1
    )

    start = dict(policy.named_parameters())
    moved = {name for name, p in alone["parameters"].items() if not torch.equal(p, start[name])}
    assert {name.split(".")[0] for name in moved} == {"expert", "vlm"}
    for name, parameter in alone["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        torch.testing.assert_close(first["parameters"][name], parameter, atol=2e-5, rtol=1e-4)
    own = {"flow_loss"}  # is each rank's, and averaged by LeRobot
    for ours, theirs, expected in zip(first["figures"], second["figures"], alone["figures"], strict=True):
        for key in expected.keys() - own:
            assert ours[key] == theirs[key]
            assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6)
    assert max(figures[acted] for figures in alone["figures"]) > 0, (
        "nothing was held, so nothing was compared"
    )
