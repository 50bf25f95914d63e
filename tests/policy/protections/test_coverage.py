"""What is said of how much an anchor's blocks hold."""

import logging
from pathlib import Path

import pytest
import torch
from training_steps import MakePolicy

from aegis_policy.checkpoint.card import CARD_FILE
from aegis_policy.isolation import Anchor, LinearFactors, Spectrum, select_blocks
from aegis_policy.protections.coverage import Coverage


def layer(width: int, kept: int, gradient: list[float] | None = None) -> LinearFactors:
    """Factors of a layer whose inputs lie along the axes."""
    values = 0.9 ** torch.arange(width)
    shares = None if gradient is None else torch.tensor([*gradient, *[0.0] * (kept - len(gradient))])
    return LinearFactors(Spectrum(values[:kept], torch.eye(width)[:, :kept], values.sum()), gradient_K=shares)


def covered(factors: dict[str, LinearFactors], share: float) -> Coverage:
    return Coverage.of("subspace", select_blocks(factors, share), factors, share)


def test_directions_and_the_gradient_that_they_hold_are_told_as_least_median_and_most():
    factors = {
        "a": layer(10, 10, [0.5, 0.2, 0.1]),  # the third direction is not blocked
        "b": layer(20, 20, [0.3, 0.1, 0.1, 0.1]),
        "c": layer(100, 100, [0.9]),
    }
    coverage = covered(factors, 0.2)
    assert coverage.directions == {"a": 2, "b": 4, "c": 20}
    assert coverage.gradient == pytest.approx({"a": 0.7, "b": 0.6, "c": 0.9})
    (finding,) = coverage.findings()
    assert finding.status == "ok"
    assert finding.what == (
        "The subspace anchor protects 2, 4 and 20 of a layer's input directions, 20.0%, 20.0% and 20.0% of its inputs "
        "(least, median and most of 3 layers), which hold 60.0%, 70.0% and 90.0% of the answers' gradient"
    )


def test_where_the_greater_part_of_the_answers_gradient_is_free_is_a_warning():
    (finding,) = covered({"a": layer(10, 10, [0.2, 0.1, 0.5]), "b": layer(10, 10, [0.3])}, 0.2).findings()
    assert finding.status == "warning"
    assert "30.0%, 30.0% and 30.0% of the answers' gradient; a median below 33% is little" in finding.what
    assert "--share" in finding.mend and "--policy.anchor_share" in finding.mend


def test_a_gradient_that_the_anchor_does_not_know_is_said_with_how_to_find_out():
    coverage = covered({"a": layer(10, 10, [0.9]), "b": layer(10, 10)}, 0.2)
    assert coverage.gradient is None
    (finding,) = coverage.findings()
    assert finding.status == "ok" and "is not known" in finding.what
    assert "aegis-anchor" in finding.what and "--policy.vqa_probe_freq" in finding.what


def test_an_anchor_that_keeps_less_than_is_asked_for_is_a_warning_by_layer():
    known, short = covered({"a": layer(100, 16), "b": layer(10, 10), "c": layer(100, 100)}, 0.3).findings()
    assert known.status == "ok" and "10 of a layer's" not in known.what
    assert (
        short.status == "warning" and "keeps fewer directions of a than --policy.anchor_share" in short.what
    )


def test_log_and_card_say_what_is_protected(
    make_policy: MakePolicy, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    policy = make_policy("aegis", anchor="subspace")
    with caplog.at_level(logging.INFO):
        policy.get_optim_params()
    (coverage,) = policy.protection.coverages()
    counts = sorted({round(0.07 * each.in_features) for each in policy.vlm.linear_layers.values()})
    assert set(coverage.directions.values()) <= set(counts) and coverage.directions
    assert f"The subspace anchor protects {coverage}" in caplog.text
    policy.save_pretrained(tmp_path)
    assert f"| protected by subspace | {coverage} |" in (tmp_path / CARD_FILE).read_text()


@pytest.mark.parametrize("rank", [16, 24, 64])
def test_no_anchor_is_refused_however_little_it_keeps(
    make_policy: MakePolicy, tiny_anchor: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, rank: int
) -> None:
    """Shares from the least to all are asked for of each."""
    whole = Anchor.load(tiny_anchor)
    few = {
        name: LinearFactors(
            each.inputs.leading(rank), gradient_K=None if each.gradient_K is None else each.gradient_K[:rank]
        )
        for name, each in whole.factors.items()
    }
    Anchor(factors=few, metadata=whole.metadata).save(tmp_path / "anchor.safetensors")
    for share in (0.01, 0.17, 1.0):
        caplog.clear()
        policy = make_policy(
            "aegis", anchor="subspace", anchor_share=share, anchor_path=tmp_path / "anchor.safetensors"
        )
        policy.get_optim_params()
        (coverage,) = policy.protection.coverages()
        for name, count in coverage.directions.items():
            kept = few[name].inputs.vectors_DK.shape[1]
            assert count == min(kept, max(1, round(share * coverage.widths[name])))
        assert ("keeps fewer directions" in caplog.text) == bool(coverage.short)
