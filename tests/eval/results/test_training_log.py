from pathlib import Path
from types import SimpleNamespace

import pytest

from aegis_eval.results.training_log import Curve, parse_training_log, read_curves, write_metrics
from aegis_policy.support.errors import AegisError


def test_every_meter_becomes_a_curve_and_rounded_steps_are_counted_on(finished_runs: SimpleNamespace):
    curves = read_curves(finished_runs.aegis / "train.log")
    assert curves["loss"].steps == list(range(100, 1601, 100))
    assert curves["anchor_distance"].values[0] == pytest.approx(4.2)
    assert {"loss", "grad_norm", "lr", "anchor_distance", "conflict_fraction", "energy_shed"} <= set(curves)
    assert not {"step", "smpl", "ep", "epch", "success"} & set(curves)
    assert curves["lr"].values[0] == 1e-4


def test_lerobots_own_tracker_prints_what_is_parsed():
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    meters = {"loss": AverageMeter("loss", ":.3f"), "grad_norm": AverageMeter("grdn", ":.3f")}
    tracker = MetricsTracker(8, 1000, 10, meters)
    lines = []
    for step in range(1, 2501):
        tracker.step()
        tracker.update_metrics({"energy_shed": step / 1000})
        tracker.loss = float(step)
        if step % 250 == 0:
            lines.append(f"\x1b[32mINFO\x1b[0m 2026-01-01 ot_train.py:349 {tracker}\rprogress 3%")
            tracker.reset_averages()
    curves = parse_training_log("\n".join(lines))
    assert curves["loss"].steps == list(range(250, 2501, 250))
    assert curves["loss"].values[0] == pytest.approx(125.5)
    assert curves["energy_shed"].steps == curves["loss"].steps


def test_a_run_logged_every_thousand_steps_keeps_its_steps():
    curves = parse_training_log("\n".join(f"x step:{k}K loss:0.5" for k in (1, 2, 3)))
    assert curves["loss"].steps == [1000, 2000, 3000]


def test_a_resumed_run_replaces_what_it_repeats():
    curves = parse_training_log("\n".join(f"step:{s} loss:{v}" for s, v in ((1, 9), (2, 8), (3, 7), (2, 5))))
    assert (curves["loss"].steps, curves["loss"].values) == ([1, 2], [9.0, 5.0])


def test_a_part_that_was_resumed_past_step_1000_is_counted_from_where_it_began():
    lines = [f"step:{s if s < 1000 else '1K'} loss:1" for s in range(37, 1300, 37)]
    lines += ["# begun 2026-01-01T00:00:00+00:00 after 300.0 s at step 1200"]
    lines += [f"step:{'1K' if s < 1500 else '2K'} loss:2" for s in range(1221, 1500, 37)]
    loss = parse_training_log("\n".join(lines))["loss"]
    assert loss.steps == list(range(37, 1500, 37))
    assert loss.values == [1.0] * 32 + [2.0] * 8


def test_figures_that_are_not_numbers_are_left_out():
    assert parse_training_log("step:10 loss:nan grdn:1.0")["grad_norm"].values == [1.0]
    assert "loss" not in parse_training_log("step:10 loss:nan grdn:1.0")


def test_a_file_without_figures_is_named(tmp_path: Path):
    (tmp_path / "train.log").write_text("nothing here")
    with pytest.raises(AegisError, match=r"train\.log holds no training figures"):
        read_curves(tmp_path / "train.log")
    with pytest.raises(AegisError, match=r"absent\.log cannot be read"):
        read_curves(tmp_path / "absent.log")


def test_metrics_are_the_curves_of_the_log_again_a_step_a_line(
    finished_runs: SimpleNamespace, tmp_path: Path
):
    curves = read_curves(finished_runs.aegis / "train.log")
    curves["vqa_accuracy"] = Curve([200, 400], [0.9, 0.8])
    write_metrics(curves, tmp_path / "metrics.jsonl")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 16
    again = read_curves(tmp_path / "metrics.jsonl")
    assert again == curves and list(again) == list(curves)
    (tmp_path / "metrics.jsonl").write_text("[]\n")
    with pytest.raises(AegisError, match=r"metrics\.jsonl cannot be read"):
        read_curves(tmp_path / "metrics.jsonl")
