"""Retention against action error: known answers on made-up runs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aegis_eval.pages.ablation import format_table, write_page
from aegis_eval.results.frontier import AblatedRun, Frontier
from aegis_eval.results.run_file import RunFile

QUESTIONS, EPISODES = 400, 50


def _run(variant: str, seed: int, wrong: int, error: float, curves: dict | None = None) -> AblatedRun:
    """A run that misses the first `wrong` questions; the pretrained model misses none."""
    rng = np.random.default_rng(0)  # episodes differ alike in all runs
    correct = "0" * wrong + "1" * (QUESTIONS - wrong)
    return AblatedRun(
        variant,
        seed,
        accuracy=1 - wrong / QUESTIONS,
        action_error=error,
        correct=correct,
        pretrained="1" * QUESTIONS,
        scenes=[index // 2 for index in range(QUESTIONS)],
        episode_errors=(error + 0.1 * rng.standard_normal(EPISODES)).tolist(),
        episode_frames=[10] * EPISODES,
        per_type={"colour": 1.0},
        curves=curves or {},
    )


def _runs(**variants: tuple[int, float]) -> list[AblatedRun]:
    return [_run(name, seed, *values) for name, values in variants.items() for seed in range(3)]


def test_shares_are_those_of_the_pretrained_accuracy_and_of_the_gain() -> None:
    frontier = Frontier.of(_runs(none=(80, 0.5), stop_gradient=(0, 0.7), half=(4, 0.6)))
    assert frontier.pretrained == 1.0
    assert frontier.gain.value == pytest.approx(0.2)
    half = frontier.variants["half"]
    assert half.retained.value == half.accuracy.value == pytest.approx(0.99)
    assert half.gain_kept is not None and half.gain_kept.value == pytest.approx(0.5)
    assert half.gain_kept.ci == pytest.approx((0.5, 0.5)), "paired: what episodes have in common cancels"
    low, high = half.action_error.ci
    assert low < half.action_error.value < high and high - low > 0.02
    none = frontier.variants["none"]
    assert none.gain_kept is not None and none.gain_kept.value == pytest.approx(1)
    assert none.accuracy.ci[0] < 0.8 < none.accuracy.ci[1]


def test_where_gradients_gain_nothing_there_is_no_share_of_it() -> None:
    frontier = Frontier.of(_runs(none=(80, 0.7), stop_gradient=(0, 0.7)))
    assert frontier.variants["none"].gain_kept is None
    assert "| none | 80.0 [" in format_table(frontier.to_dict())


def test_long_episodes_weigh_more() -> None:
    runs = [
        replace(run, episode_errors=[0.2, 0.8], episode_frames=[30, 10])
        for run in _runs(none=(0, 0.35), stop_gradient=(0, 0.35))
    ]
    assert Frontier.of(runs).variants["none"].action_error.value == pytest.approx(0.35)


def test_seeds_that_differ_widen_the_interval() -> None:
    def width(errors: list[float]) -> float:
        runs = [_run("none", seed, 0, error) for seed, error in enumerate(errors)]
        runs += [_run("stop_gradient", seed, 0, 0.9) for seed in range(3)]
        low, high = Frontier.of(runs).variants["none"].action_error.ci
        return high - low

    assert width([0.4, 0.5, 0.6]) > 2 * width([0.5, 0.5, 0.5])


def test_variants_without_the_same_seeds_are_refused() -> None:
    runs = _runs(none=(0, 0.5), stop_gradient=(0, 0.7))
    with pytest.raises(ValueError, match="same seeds"):
        Frontier.of(runs[:-1])
    with pytest.raises(ValueError, match="stop_gradient"):
        Frontier.of(runs[:3])


def test_the_page_is_drawn_from_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = {"vqa_accuracy": {"steps": [10, 20], "values": [0.9, 0.8]}}
    runs = [
        _run(name, seed, wrong, error, curve)
        for name, wrong, error in (("none", 80, 0.5), ("stop_gradient", 0, 0.7))
        for seed in range(2)
    ]
    results = {
        "config": {"probe_freq": 10},
        "frontier": Frontier.of(runs).to_dict(),
        "runs": [{"variant": run.variant, "curves": run.curves} for run in runs],
    }
    table = write_page(json.loads(json.dumps(results)), tmp_path)
    assert table.read_text() == format_table(results["frontier"])
    assert "| (pretrained) | 100.0 | 100 |" in table.read_text()
    for name in ("frontier.png", "retention.png"):
        assert (tmp_path / name).stat().st_size > 5000
    assert str(tmp_path / "frontier.png") in capsys.readouterr().out


def _with_texts(run: AblatedRun, right: int, kl: list[float]) -> AblatedRun:
    answered = {"correct": "1" * right + "0" * (100 - right), "pretrained": "1" * 80 + "0" * 20}
    read = {"kl": kl, "agreement": [1.0, 0.5], "tokens": [30, 10]}
    return replace(run, texts={"general": answered, "prose": read})


def test_texts_get_a_column_each() -> None:
    runs = _runs(none=(80, 0.5), stop_gradient=(0, 0.7))
    runs = [
        _with_texts(run, *((40, [0.4, 0.8]) if run.variant == "none" else (80, [0.0, 0.0]))) for run in runs
    ]
    frontier = Frontier.of(runs)
    none, stopped = frontier.variants["none"], frontier.variants["stop_gradient"]
    assert none.text_retained["general"].value == pytest.approx(0.5)
    assert none.text_retained["general"].ci[0] < 0.5 < none.text_retained["general"].ci[1]
    assert none.text_kl["prose"].value == pytest.approx(0.5), "long paragraphs weigh more"
    assert stopped.text_retained["general"].ci == (1.0, 1.0) and stopped.text_kl["prose"].value == 0
    header, _, pretrained, row, *_ = format_table(frontier.to_dict()).splitlines()
    assert "| general: retained % | prose: KL |" in header
    assert "| 50.0 [" in row and "| 0.5000 [" in row
    assert header.count("|") == pretrained.count("|") == row.count("|")


def test_a_further_benchmark_is_counted_by_its_scenes() -> None:
    answers = {"correct": "1" * 40 + "0" * 40, "pretrained": {"correct": "1" * 80}}
    scenes = {"few": [0] * 40 + [1] * 40, "many": list(range(80))}
    measured = {
        "training": {},
        "vqa": {**answers, "accuracy": 0.5, "per_type": {}, "scenes": scenes["many"]},
        "action-error": {"action_error": 0.5, "episode_errors": [0.5], "episode_frames": [1]},
        **{f"vqa-{name}": {**answers, "scenes": each} for name, each in scenes.items()},
    }
    file = RunFile("none", 1e-3, 0, "none-0", [], {}, measured, {})
    runs = [AblatedRun.of(replace(file, variant=name)) for name in ("none", "stop_gradient")]
    found = Frontier.of(runs).variants["none"].text_retained
    assert found["few"].value == found["many"].value == 0.5
    assert found["few"].ci == (0.0, 1.0) and 0.35 < found["many"].ci[0] < found["many"].ci[1] < 0.65


def test_texts_of_which_the_pretrained_model_knows_nothing_have_no_share() -> None:
    texts = {"hard": {"correct": "01", "pretrained": "00"}}
    runs = [replace(run, texts=texts) for run in _runs(none=(80, 0.5), stop_gradient=(0, 0.7))]
    assert Frontier.of(runs).variants["none"].text_retained == {}
