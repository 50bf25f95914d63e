"""The benchmark for a GPU, at tiny shapes on the CPU, and what its figures are counted by."""

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from aegis_policy.isolation import DEFAULT_SHARE, direction_count, select_blocks
from aegis_policy.vlm.backbone import VLMBackbone

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a module of the benchmarks as their scripts do."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    return importlib.import_module


@pytest.mark.slow
def test_every_part_runs_tiny_into_one_json_and_none_runs_twice(
    shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, load: Load
) -> None:
    command = ("env", f"PYTHON={sys.executable}", str(_BENCHMARKS / "gpu.sh"), "--tiny", f"--out={tmp_path}")
    done = shell(*command, fork=False, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    whole = json.loads((tmp_path / "gpu.json").read_text())
    plan = load("_gpu_plan")
    parts = set(plan.PARTS)
    assert whole.keys() == {*parts, "scale", "provenance", "seconds_over_none", "left_out"}
    assert whole["left_out"] == {}
    assert {"git_commit", "versions", "hardware", "seed"} <= whole["provenance"].keys()
    assert {"card", "driver", "cuda", "peak_flops"} <= whole["environment"].keys()
    for part in parts - {"environment"}:
        assert list(whole[part]) == [row.name for row in plan.rows_of(part, plan.TINY)]
    for part in plan.STEP_PARTS:
        for figures in whole[part].values():
            assert figures["seconds"] > 0 < figures["flops"]
            assert figures["mfu"] is None, "of a CPU no peak is known"
    assert len(whole["seconds_over_none"]) == 4 * len(plan.STEP_PARTS)
    assert whole["chunk"]["chunk-compiled"]["difference_to_eager"] < 0.01
    assert whole["two-processes"]["two-processes-aegis"]["processes"] == 2

    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    again = shell(*command, fork=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("measured before") == len(parts)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == rows


def test_what_was_not_measured_is_left_out_with_the_reason(load: Load, tmp_path: Path) -> None:
    plan = load("_gpu_plan")
    kept = plan.Kept(tmp_path)
    none, aegis = (plan.rows_of(part, plan.FULL) for part in ("step-none", "step-aegis"))
    kept.keep(none[0], {"seconds": 2.0})
    kept.keep(none[1], {"out_of_memory": "so much"})
    kept.fail(aegis[0], "ValueError: it failed")
    kept.keep(aegis[0], {"seconds": 3.0})
    kept.keep(aegis[1], {"seconds": 3.0})
    kept.fail(aegis[2], "ValueError: it failed")
    whole = plan.joined(kept, plan.FULL)
    assert whole["step-none"] == {none[0].name: {"seconds": 2.0}, none[1].name: {"out_of_memory": "so much"}}
    assert whole["seconds_over_none"] == {none[0].name: 1.0, aegis[0].name: 1.5}
    assert aegis[0].name not in whole["left_out"]
    assert whole["left_out"][aegis[2].name] == "ValueError: it failed"
    assert whole["left_out"]["chunk-eager"] == "not reached in time"
    assert kept.missing(aegis) == aegis[2:]


def test_without_a_gpu_it_says_so_in_one_sentence(load: Load, tmp_path: Path) -> None:
    plan, work = load("_gpu_plan"), load("_gpu_work")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(work.AegisError, match=r"sees no GPU .* --tiny"):
        work.measure_part(
            "environment", plan.rows_of("environment", plan.FULL), plan.Kept(tmp_path), plan.FULL
        )


def test_rows_of_another_card_are_not_mixed(load: Load, tmp_path: Path) -> None:
    plan, work = load("_gpu_plan"), load("_gpu_work")
    kept = plan.Kept(tmp_path)
    kept.keep(plan.Row("environment"), {"card": "NVIDIA H200"})
    with pytest.raises(work.AegisError, match="of NVIDIA H200, and this is a CPU: choose another folder"):
        work.measure_part("chunk", plan.rows_of("chunk", plan.TINY), kept, plan.TINY)


def test_a_row_without_memory_leaves_the_others(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, work = load("_gpu_plan"), load("_gpu_work")
    kept, rows = plan.Kept(tmp_path), plan.rows_of("step-gaussian", plan.TINY)[:3]
    backward, full = torch.Tensor.backward, iter([*[False] * 14, True])

    def scarce(*arguments: object, **options: object) -> None:
        if next(full, False):
            raise torch.OutOfMemoryError("so much")
        backward(*arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", scarce)
    work.measure_part("step-gaussian", rows, kept, plan.TINY)
    assert ["out_of_memory" in (kept.read(row) or {}) for row in rows] == [False, True, False]


def test_flops_are_those_that_torch_counts_of_linear_layers(load: Load) -> None:
    layers = [nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 32), nn.Linear(32, 4)]
    for layer in (layers[0], layers[2]):
        layer.requires_grad_(False)
    model, x = nn.Sequential(*layers), torch.randn(3, 5, 8)

    def step() -> None:
        model(x).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert load("_flops").training_flops(model, step) == counter.get_total_flops()


def test_the_peak_is_that_of_the_cards_kind(load: Load) -> None:
    peak = load("_flops").peak_flops
    assert peak("NVIDIA H200") == peak("NVIDIA H100 80GB HBM3") == 989e12
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA GeForce RTX 4090") is None


def test_a_random_anchor_has_a_block_of_its_own_for_every_input(load: Load, tiny_vlm_dir: Path) -> None:
    vlm = VLMBackbone.from_pretrained(tiny_vlm_dir)
    blocks = select_blocks(load("_random_anchor").random_anchor(vlm, "subspace").factors)
    decoder = {name: x for name, x in vlm.linear_layers.items() if name.startswith(vlm.family.decoder_layers)}
    assert blocks.keys() == decoder.keys()
    assert len({id(block) for block in blocks.values()}) == 4 * vlm.num_layers
    for name, block in blocks.items():
        width = decoder[name].in_features
        assert block.shape == (width, direction_count(width, DEFAULT_SHARE))
        torch.testing.assert_close(block.T @ block, torch.eye(block.shape[1]), atol=1e-5, rtol=0)
