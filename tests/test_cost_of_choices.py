"""What `benchmarks/cost_of_choices.py` counts, on tiny VLMs; no test is about time."""

import importlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small import SmallVLMSize, build_small_vlm

_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_FLAGS = {"expert_width": 16, "expert_depth": 3, "expert_heads": 2, "chunk_size": 4}


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, found as it finds its own modules."""
    monkeypatch.syspath_prepend(_BENCHMARKS)
    yield importlib.import_module("cost_of_choices")


def vlm_of(layers: int, tower_layers: int) -> VLMBackbone:
    size = SmallVLMSize(
        image_size=32,
        patch_size=16,
        vision_layers=tower_layers,
        vision_width=32,
        text_layers=layers,
        text_width=32,
        heads=2,
    )
    return build_small_vlm(["on", "table"], size, seed=0, name="tiny")


def setting_of(costs: ModuleType, vlm: object = "tiny"):
    return costs.Setting(str(vlm), batch_size=2, image_size=32, flags=_FLAGS)


def count_directly(costs: ModuleType, vlm: VLMBackbone, **flags: object):
    with costs.given(vlm):
        side = setting_of(costs).side(costs.Choice(flags))
    return costs.count(side)


@pytest.mark.parametrize("flags", [{}, {"backbone_depth": 4}, {"flow_samples": 1, "expert_depth": 5}])
def test_flops_from_two_layers_are_those_counted_on_all_of_them(costs: ModuleType, flags: dict) -> None:
    whole = costs.count_whole(setting_of(costs), vlm_of(2, 2), costs.Choice(flags), tower_layers=3, layers=5)
    assert whole == count_directly(costs, vlm_of(5, 3), **flags)


def test_half_the_depth_takes_half_of_what_the_decoder_does_and_nothing_else(costs: ModuleType) -> None:
    vlm = vlm_of(4, 1)
    full, half = count_directly(costs, vlm), count_directly(costs, vlm, backbone_depth=2)
    for kind in ("step", "chunk"):
        counted, before = (costs.by_network(getattr(each, kind), vlm) for each in (half, full))
        assert counted["decoder"] == before["decoder"] / 2 > 0
        for part in ("vision tower and projector", "expert"):
            assert counted[part] == before[part] > 0


def test_a_step_is_six_flops_a_weight_and_token_of_what_learns_and_a_chunk_two(costs: ModuleType) -> None:
    """Of the decoder, whose tokens are those of the prefix."""
    vlm = vlm_of(2, 1)
    with costs.given(vlm):
        side = setting_of(costs).side(costs.Choice())
    weights = sum(m.weight.numel() for m in vlm.decoder_layers.modules() if isinstance(m, nn.Linear))
    counted = costs.count(side)
    for flops, a_weight_and_token in ((counted.step, 6), (counted.chunk, 2)):
        found = costs.by_network(flops, vlm)["decoder"]
        assert found == a_weight_and_token * weights * counted.prefix_tokens


def test_what_is_kept_for_the_backward_pass_is_counted_once(costs: ModuleType) -> None:
    first, last = nn.Linear(16, 16), nn.Linear(16, 16)
    layers, x = nn.Sequential(first, nn.GELU(), last), torch.randn(10, 16, requires_grad=True)
    weights = [*layers.parameters()]
    assert costs.kept_bytes(lambda: layers(x), weights) == 3 * x.numel() * 4, "the input of each layer"
    assert costs.kept_bytes(lambda: checkpoint(layers, x, use_reentrant=False), weights) == x.numel() * 4


def test_choices_differ_from_the_reference_and_from_one_another(costs: ModuleType) -> None:
    found = costs.choices(30, {}, costs._EXPERTS)
    assert {"backbone_depth=15", "backbone_depth=20", "one camera", "half the batch"} <= found.keys()
    assert {"chunk_size=8", "flow_samples=16", "gradient_checkpointing=True"} <= found.keys()
    assert not {"chunk_size=16", "flow_samples=4"} & found.keys(), "the defaults"
    assert not any("expert_width=192" in name for name in found)
    assert len({repr(choice) for choice in found.values()}) == len(found)
    unchanged = {name for name, choice in found.items() if not choice.changes_chunks}
    samples = {f"flow_samples={count}" for count in (1, 2, 8, 16)}
    assert unchanged == {"half the batch", "twice the batch", "gradient_checkpointing=True", *samples}
    large = costs.choices(26, costs._COUNTED_FLAGS, costs._LARGE_EXPERTS, counted=True)
    assert {"backbone_depth=13", "backbone_depth=17", "chunk_size=16"} <= large.keys()
    assert not {"chunk_size=50", "twice the batch", "gradient_checkpointing=True"} & large.keys()


def test_every_part_of_a_step_is_found(
    costs: ModuleType, tiny_vlm_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that ticks once when it is read, every part takes some of the step."""
    side = setting_of(costs, tiny_vlm_dir).side(costs.Choice())
    ticks = itertools.count()
    monkeypatch.setattr(importlib.import_module("step_cost").time, "perf_counter", lambda: float(next(ticks)))
    with costs.forward_laps(side.policy) as passes:
        step = side.step()
    (laps,) = passes
    assert set(laps) == set(costs.PARTS) - {"backward", "clipping", "optimizer"}
    assert all(seconds > 0 for seconds in laps.values())
    assert sum(laps.values()) == step["forward"] - 2, "but for one reading each at its beginning and end"
    assert not side.policy._forward_hooks and "prepare" not in vars(side.policy.vlm)


def test_a_choice_is_measured_beside_the_reference(
    costs: ModuleType, tiny_vlm_dir: Path, tmp_path: Path
) -> None:
    only = ["backbone_depth=1", "twice the batch", "gradient_checkpointing=True"]
    figures = costs.measure(setting_of(costs, tiny_vlm_dir), rounds=1, only=only)
    found = figures["choices"]
    assert sorted(found) == sorted(only)
    assert found["backbone_depth=1"]["flops"] < 1 > found["backbone_depth=1"]["chunk_flops"]
    assert found["twice the batch"]["flops"] == 1, "a sample"
    assert found["twice the batch"]["activations"] == pytest.approx(2, rel=0.2)
    assert found["gradient_checkpointing=True"]["activations"] < 1
    assert "chunk_time" not in found["twice the batch"]
    costs.keep({"batch_size": 2, **figures}, tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    parts, table = costs.table_of_parts(figures), costs.table_of_choices(figures)
    assert [row[0] for row in parts.rows] == list(costs.PARTS)
    assert [row[0] for row in table.rows] == ["reference", *found]
    assert len({len(row) for row in table.rows} | {len(table.header)}) == 1


def test_an_unknown_choice_is_named(costs: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no choice is called chunk_size=7; there are one camera, "):
        costs._chosen(costs.choices(4, {}, costs._EXPERTS), ["chunk_size=7"])
