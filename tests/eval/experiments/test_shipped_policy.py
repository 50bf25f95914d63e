"""What `benchmarks/embedded_base.py` makes of a checkpoint, and the base policy that comes with the package."""

import json
from pathlib import Path

import torch
from benchmark_scripts import load
from safetensors.torch import load_file

from aegis_eval.results.rollouts import Rollouts, TaskSuccess
from aegis_eval.results.run import RunSummary
from aegis_eval.results.swap import SwapProbe
from aegis_policy.checkpoint.checks import check_checkpoint, check_kept
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.pretrained import EMBEDDED_BASE

_KEPT = 2**-11
"""Of a weight's size, what float16 may round away."""


def findings(folder: Path) -> list[str]:
    return [found.status for check in (check_checkpoint, check_kept) for found in check(folder)]


def test_a_shipped_checkpoint_is_whole_and_half_as_large(tiny_checkpoint: Path, tmp_path: Path) -> None:
    load("embedded_base").ship(tiny_checkpoint, tmp_path / "shipped")
    assert findings(tmp_path / "shipped") == ["ok"]
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(tmp_path / "shipped" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.itemsize == 2
        assert torch.allclose(weight.float(), before[name], rtol=_KEPT, atol=1e-7)
    policy = AegisPolicy.from_pretrained(tmp_path / "shipped")
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}


def test_its_card_says_what_it_does_however_often_it_is_measured(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    module = load("embedded_base")
    module.ship(tiny_checkpoint, tmp_path / "shipped")
    card = tmp_path / "shipped" / "README.md"
    first = card.read_text()
    run = RunSummary(
        "base",
        rollouts=Rollouts((TaskSuccess("pick", (True, True, True, False)),), ()),
        swaps=(SwapProbe("pick", "test", pairs=4, followed=6, changed=3),),
    )
    arms = {"nearest object": {"pick": [1.0, 0.0]}, "any object": {"pick": [0.5, 0.5]}}
    for _ in range(2):
        module.write_card(card, run, arms, module.EmbeddedBaseConfig(tmp_path, rollouts=4))
    text = card.read_text()
    assert text.count("## What it does") == text.count("## Use") == 1
    assert "| pick | 75.0 [30.1, 95.4] | 50.0 [9.5, 90.5] | 75.0 [40.9, 92.9] |" in text
    assert text.startswith(first.partition("## Use")[0]) and text.endswith(first.partition("## Use")[2])


def test_the_embedded_base_is_small_whole_and_of_no_machine() -> None:
    assert findings(EMBEDDED_BASE) == ["ok"]
    assert sum(path.stat().st_size for path in EMBEDDED_BASE.rglob("*")) < 15e6
    for path in EMBEDDED_BASE.rglob("*.json"):
        assert str(Path.home()) not in path.read_text()
        assert "/tmp" not in path.read_text()
    card = (EMBEDDED_BASE / "README.md").read_text()
    assert "## What it does" in card and "Not asked yet" not in card
    config = json.loads((EMBEDDED_BASE / "config.json").read_text())
    assert (config["vlm"], config["protection"], config["anchor_info"]) == ("embedded", "aegis", None)
