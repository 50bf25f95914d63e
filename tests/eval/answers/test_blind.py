"""What could be answered without looking."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from aegis_eval.answers.blind import BlindBaseline, blind_baseline
from aegis_eval.questions import tabletop
from aegis_eval.questions.benchmarks import BENCHMARKS


def test_blind_baseline_answers_by_text_then_by_type_and_never_without_training():
    training = [("is it red?", "yes", "existence")] * 6 + [("is it blue?", "no", "existence")] * 20
    baseline = BlindBaseline(min_count=5).fit(training)
    assert baseline.predict("Is it red", "existence") == "yes"
    assert baseline.predict("is it cyan?", "existence") == "no"
    assert baseline.predict("how many?", "count") == ""


def _asked(calls: list[tuple]) -> Callable[..., list[SimpleNamespace]]:
    def load(*arguments: object, cache_dir: Path | None = None) -> list[SimpleNamespace]:
        calls.append((*arguments, cache_dir))
        return [SimpleNamespace(question="what?", answer="red", type="colour")]

    return load


@pytest.mark.parametrize(
    ("name", "guesser"),
    [
        ("tabletop", "tabletop"),
        ("tabletop_composed", "tabletop_composed"),
        ("tabletop_robot", "tabletop"),
    ],
)
def test_a_guesser_knows_training_questions_of_the_same_kind(
    name: str, guesser: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    calls: list[tuple] = []
    monkeypatch.setattr(tabletop, "load_benchmark", _asked(calls))
    baseline = blind_baseline(BENCHMARKS[name], 5000, cache_dir=tmp_path)
    assert calls == [(guesser, "train", 800, tmp_path)], "no more scenes than change its mind"
    assert baseline is not None and baseline.predict("what?", "colour") == "red"


def test_a_public_benchmark_has_no_guesser():
    assert blind_baseline(BENCHMARKS["vqav2"], 40) is None
