"""Accuracy on public benchmarks equals lmms-eval's, answer by answer (see `score_with_lmms_eval.py`)."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from aegis_eval.questions.official_scores import canonical, matches, vqa_accuracy, yes_no_scores

SCORED = json.loads(Path(__file__).with_name("lmms_eval_scores.json").read_text())


def test_every_answer_scores_as_in_lmms_eval() -> None:
    seen = set()
    for case in SCORED["answers"]:
        given, people, scores = case["given"], case["people"], case["scores"]
        assert vqa_accuracy(given, people, words_first=False) == pytest.approx(scores["vqav2"]), case
        for benchmark in ("okvqa", "textvqa"):
            assert vqa_accuracy(given, people) == pytest.approx(scores[benchmark]), case
        assert matches(given, people[0]) == scores["gqa"], case
        seen |= set(scores.values())
    assert len(SCORED["answers"]) > 300 and len(seen) > 4, "right, wrong and partly right answers"


def test_the_figures_of_pope_are_those_of_lmms_eval() -> None:
    pope = SCORED["pope"]
    assert asdict(yes_no_scores(pope["given"], pope["truth"])) == pytest.approx(pope["scores"])


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The dogs", "dogs"),
        ("dont know", "don't know"),
        ("Three.", "3"),
        ("x-ray", "x ray"),
        ("1,000", "1000"),
        ("3.5 m.", "3.5 m"),
        ("the man's hat", "man 's hat"),
    ],
)
def test_canonical_form(text: str, form: str) -> None:
    assert canonical(text) == form


def test_what_cannot_be_scored_is_said() -> None:
    with pytest.raises(ValueError, match="none"):
        vqa_accuracy("red", [])
    with pytest.raises(ValueError, match="must be yes or no"):
        yes_no_scores(["yes"], ["red"])
