import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from aegis_eval.checkpoints import PolicySource
from aegis_eval.commands.drift import DriftConfig
from aegis_eval.commands.work.drift import measure_drift, relative_drift
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.prefix import Prefix


def measure(checkpoint: Path, tmp_path: Path, **options):
    config = DriftConfig(
        PolicySource(str(checkpoint)),
        samples=7,
        batch_size=3,
        device="cpu",
        output=tmp_path / "d.json",
        **options,
    )
    return json.loads(measure_drift(config).read_text())


def test_an_untouched_backbone_has_not_drifted(tiny_checkpoint: Path, tmp_path: Path):
    results = measure(tiny_checkpoint, tmp_path)
    assert results["drift"] == 0 and results["ci"] == [0, 0]
    assert results["samples"] == 7


def test_a_changed_layer_moves_itself_and_those_behind_it(tiny_checkpoint: Path, tmp_path: Path):
    policy = AegisPolicy.from_pretrained(str(tiny_checkpoint))
    with torch.no_grad():
        policy.vlm.decoder_layers[1].mlp.down_proj.weight.mul_(1.5)
    policy.save_pretrained(tmp_path / "changed")
    results = measure(tmp_path / "changed", tmp_path)
    layers = [layer["drift"] for layer in results["per_layer"]]
    assert layers[0] == 0 and min(layers[1:]) > 0.01
    assert results["drift"] == pytest.approx(np.mean(layers))
    assert results["ci"][0] < results["drift"] < results["ci"][1]


def test_layers_that_a_policy_does_not_run_are_compared_too(tiny_checkpoint: Path, tmp_path: Path):
    config = json.loads((tiny_checkpoint / "config.json").read_text()) | {"backbone_depth": 1}
    shutil.copytree(tiny_checkpoint, tmp_path / "short")
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    results = measure(tmp_path / "short", tmp_path)
    assert [layer["drift"] for layer in results["per_layer"]] == [0, 0]


def test_drift_is_relative_and_blind_to_padding():
    before = torch.randn(2, 5, 3)
    mask = torch.tensor([[True] * 5, [False, False, True, True, True]])
    after = before * 1.25
    after[1, :2] = 100.0
    ratios = list(relative_drift(Prefix((after, before), mask), Prefix((before, before), mask)))
    np.testing.assert_allclose(ratios, [[0.25, 0.0], [0.25, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "--policy.path is missing"),
        ({"samples": 0}, "--samples=0 must be at least 1"),
    ],
)
def test_what_cannot_be_measured_is_named(options, sentence):
    with pytest.raises(AegisError, match=sentence):
        measure_drift(DriftConfig(**options))


def test_a_benchmark_that_does_not_exist_is_named(tiny_checkpoint: Path, tmp_path: Path):
    with pytest.raises(AegisError, match="--benchmark=trivia is not known"):
        measure(tiny_checkpoint, tmp_path, benchmark="trivia")


def test_another_model_than_the_one_of_the_policy_is_named(tiny_checkpoint: Path, tmp_path: Path):
    with pytest.raises(
        AegisError, match=r"--pretrained=embedded is a paligemma .* name the one it was made from"
    ):
        measure(tiny_checkpoint, tmp_path, pretrained="embedded")
