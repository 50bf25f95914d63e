import json
from dataclasses import dataclass

import pytest

from aegis_eval.answers.blind import BlindBaseline
from aegis_eval.answers.scoring import format_table, score_answers


@dataclass(frozen=True)
class Asked:
    question: str
    answer: str
    type: str
    scene: int
    chance: float | None = None

    def score(self, given: str) -> float:
        return float(given == self.answer)


SAMPLES = [Asked("what colour is the cube?", "red", "colour", index) for index in range(8)] + [
    Asked("is there a red cube?", "yes", "existence", index) for index in range(8)
]
BLIND = BlindBaseline().fit([("is there a red cube?", "yes", "existence")] * 9)


def test_scores_are_per_type_and_paired_with_the_pretrained_answers():
    answers = ["red"] * 4 + ["blue"] * 4 + ["yes"] * 8
    scores = score_answers(SAMPLES, answers, BLIND, ["red"] * 8 + ["yes"] * 8)
    assert scores.overall.accuracy == 0.75
    assert scores.overall.blind == 0.5
    assert list(scores.per_type) == ["colour", "existence"]
    colour = scores.per_type["colour"]
    assert (colour.accuracy, colour.n, colour.blind) == (0.5, 8, 0.0)
    assert colour.pretrained.paired.lost == 4
    assert colour.pretrained.retained == 0.5
    assert scores.per_type["existence"].pretrained.paired.difference == 0.0


def test_scores_become_json_with_the_documented_keys():
    data = json.loads(json.dumps(score_answers(SAMPLES, ["red"] * 16, BLIND).to_dict()))
    assert {"accuracy", "n", "ci", "blind", "pretrained", "per_type"} <= set(data)
    assert data["pretrained"] is None
    assert data["per_type"]["colour"]["accuracy"] == 1.0


def test_a_reference_that_knows_nothing_has_no_ratio():
    scores = score_answers(SAMPLES, ["red"] * 16, BLIND, [""] * 16)
    assert scores.overall.pretrained.retained is None


def test_chance_stands_beside_the_accuracy_of_questions_with_options():
    samples = [
        *(Asked("A. left B. right", "A", "letter", index, chance=0.5) for index in range(2)),
        *(Asked("how many?", "2", "number", index) for index in range(2)),
    ]
    scores = score_answers(samples, ["A", "B", "2", "2"], None)
    assert (scores.overall.chance, scores.per_type["letter"].chance) == (0.25, 0.5)
    assert scores.per_type["number"].chance == 0.0, "nobody guesses a number"
    header, *_ = format_table(scores).splitlines()
    assert "chance %" in header and "blind" not in header
    assert score_answers(samples[2:], ["2", "2"], None).overall.chance is None


def test_every_sample_needs_an_answer():
    with pytest.raises(ValueError, match="16 samples and 1 answers"):
        score_answers(SAMPLES, ["red"], BLIND)
