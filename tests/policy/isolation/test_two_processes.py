import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `two_ranks.py` saved, by file name."""
    folder = tmp_path_factory.mktemp("two_ranks")
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("two_ranks.py")), str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 1e-4)])
def test_two_processes_end_with_the_parameters_of_one(results, dtype, tolerance):
    one, two = results[f"{dtype}-0-of-1"], results[f"{dtype}-0-of-2"]
    assert any(step["conflict_fraction"] > 0 for step in one["metrics"])
    for name, expected in one["parameters"].items():
        torch.testing.assert_close(two["parameters"][name], expected, rtol=tolerance, atol=tolerance)
    for step, expected in zip(two["metrics"], one["metrics"], strict=True):
        assert step == {key: pytest.approx(value, rel=1e-3, abs=1e-6) for key, value in expected.items()}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_both_ranks_end_bit_for_bit_alike(results, dtype):
    first, second = results[f"{dtype}-0-of-2"], results[f"{dtype}-1-of-2"]
    for name, expected in first["parameters"].items():
        assert torch.equal(second["parameters"][name], expected)
    assert second["metrics"] == first["metrics"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_an_anchor_gradient_contributes_zeros(results, rank):
    (first, unreached), (second,) = results[f"reduced-{rank}"]["total"]
    assert (first == 2).all()
    assert (unreached == 0).all()
    assert (second == 3).all()


@pytest.mark.parametrize("rank", [0, 1])
def test_if_no_rank_has_an_anchor_gradient_every_rank_says_so(results, rank):
    assert "would be unprotected" in results[f"reduced-{rank}"]["error"]
