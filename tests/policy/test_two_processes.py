"""Data parallelism changes nothing but rounding: two ranks equal one process on the same global batch."""

import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_steps import MakePolicy

from aegis_policy.modeling_aegis import AegisPolicy

SCRIPT = Path(__file__).with_name("two_ranks.py")


PARTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gaussian": ("aegis", {"anchor": "gaussian"}, "gaussian_conflict_fraction"),
    "accumulated": (
        "aegis",
        {"anchor": "gaussian+subspace"},
        "gaussian_conflict_fraction",
    ),
    "subspace": ("aegis", {"anchor": "subspace"}, "subspace_blocked_energy"),
    "w2_penalty": ("w2_penalty", {"penalty": 0.1}, "gaussian_anchor_distance"),
    "distill": ("distill", {"penalty": 0.1}, "hidden_distance"),
    "replay": ("replay", {"replay_batch_size": 2}, "vqa_loss"),
    "knowledge_insulation": ("knowledge_insulation", {}, "action_token_loss"),
    "muon": ("none", {"expert_optimizer": "muon"}, "flow_loss"),
    "sharded none": ("none", {}, "flow_loss"),
    "sharded stop_gradient": ("stop_gradient", {}, "flow_loss"),
    "sharded lora": ("lora", {}, "flow_loss"),
    "sharded subspace": ("aegis", {"anchor": "subspace"}, "subspace_blocked_energy"),
}
"""Name -> protection, its options, and the figure that shows that it acted."""
_MUON_ATOL = 1.5e-4
"""A tenth of the way that matrices went, of which Muon's bfloat16 keeps two to three digits."""
_CONSTANT = {"sharded stop_gradient": {"vlm"}}
"""Part -> what does not learn there."""


@pytest.fixture(scope="module")
def launched(
    make_policy: MakePolicy,
    make_batch: Callable[..., dict[str, Any]],
    shell: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, AegisPolicy]]:
    """The folder in which two ranks trained every part, in one launch, and the policies as they were before."""
    folder = tmp_path_factory.mktemp("two_ranks")
    policies = {
        name: make_policy(
            protection,
            **options,
            optimizer_lr=1e-3,
            optimizer_lr_backbone=1e-3,
            flow_samples=2,
        )
        for name, (protection, options, _) in PARTS.items()
    }
    for name, policy in policies.items():
        policy.save_pretrained(folder / name / "policy")
    torch.save([make_batch(size=6, seed=seed) for seed in range(4)], folder / "batches")
    arguments = [str(folder / name) for name in ("batches", *PARTS)]
    done = shell("torchrun", "--nproc_per_node=2", "--standalone", str(SCRIPT), *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, policies


@pytest.mark.parametrize("part", PARTS)
def test_two_processes_equal_one_on_the_same_global_batch(
    launched: tuple[Path, dict[str, AegisPolicy]], part: str
) -> None:
    folder, policies = launched
    policy, acted = policies[part], PARTS[part][2]
    first, second = (torch.load(folder / part / f"rank{rank}", weights_only=True) for rank in range(2))
    saved = load_file(folder / part / "saved0" / "model.safetensors")
    assert all(
        torch.equal(p, first["parameters"][name]) for name, p in saved.items() if name in first["parameters"]
    )
    if part in ("replay", "knowledge_insulation"):  # whose questions are a rank's
        policy.config.replay_batch_size *= 2
        policy.save_pretrained(folder / part / "policy")
    alone = runpy.run_path(str(SCRIPT))["train"](
        folder / part / "policy", folder / "batches", rank=0, ranks=1
    )

    start = dict(policy.named_parameters())
    moved = {name for name, p in alone["parameters"].items() if not torch.equal(p, start[name])}
    assert {name.split(".")[0] for name in moved} == {"expert"} | ({"vlm"} - _CONSTANT.get(part, set()))
    atol = _MUON_ATOL if part == "muon" else 2e-5
    for name, parameter in alone["parameters"].items():
        assert torch.equal(first["parameters"][name], second["parameters"][name])
        torch.testing.assert_close(first["parameters"][name], parameter, atol=atol, rtol=1e-4)
    own = {"flow_loss"}  # is each rank's, and averaged by LeRobot
    if part.startswith("sharded"):
        own.add("subspace_blocked_energy")  # of the rows that are there
    for ours, theirs, expected in zip(first["figures"], second["figures"], alone["figures"], strict=True):
        for key in expected.keys() - own:
            assert ours[key] == theirs[key]
            assert ours[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6)
    assert max(figures[acted] for figures in alone["figures"]) > 0, (
        "nothing was held, so nothing was compared"
    )


def test_the_first_rank_alone_saves_though_all_are_told_to(
    launched: tuple[Path, dict[str, AegisPolicy]],
) -> None:
    folder, policies = launched
    for part in policies:
        first, second = folder / part / "saved0", folder / part / "saved1"
        assert {"model.safetensors", "README.md", "vlm"} <= {path.name for path in first.iterdir()}
        assert (first / "anchor.safetensors").is_file() == policies[part].protection.needs_anchor
        assert not list(second.iterdir())
