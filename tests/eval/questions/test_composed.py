"""Composed questions have one answer, need their relation, and are no training questions."""

import re
from collections import Counter

import numpy as np
import pytest

from aegis_envs.tabletop.scene import ALL_PAIRS, COLORS, SHAPES, Scene, SceneObject, sample_scene
from aegis_eval.questions.templated import (
    COMPOSED_TYPES,
    TYPES,
    Question,
    all_answers,
    all_words,
    ask,
    split_words,
    table_place,
)

AXES = {"left of": (0, -1), "right of": (0, 1), "behind": (1, -1), "in front of": (1, 1)}
ASKED = re.compile(
    r"(?P<first>.*) (?P<relation>left of|right of|behind|in front of) the (?P<other>\w+ \w+)\??$"
)


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(400):
        scene = sample_scene(rng, (3, 4), include=[ALL_PAIRS[int(rng.integers(len(ALL_PAIRS)))]])
        for kind in COMPOSED_TYPES:
            pairs += [(scene, question) for question in ask(scene, rng, types=[kind], n=1)]
    return pairs


def beyond(scene: Scene, relation: str, other: str) -> list[SceneObject]:
    """Everything that lies clearly on that side of the other thing, worked out from the scene alone."""
    place, (axis, sign) = table_place(scene), AXES[relation]
    zero = place(scene.objects[scene.index(other)])[axis]
    return [
        thing for thing in scene.objects if thing.name != other and sign * (place(thing)[axis] - zero) >= 0.07
    ]


def test_exactly_the_answer_fits_the_question(asked: list[tuple[Scene, Question]]) -> None:
    for scene, question in asked:
        found = ASKED.match(question.text)
        assert found, question.text
        there = beyond(scene, found["relation"], found["other"])
        words = split_words(found["first"])
        (shape,) = [shape for shape in SHAPES if shape in words] or [None]
        (color,) = [color for color in COLORS if color in words] or [None]
        fitting = [thing for thing in there if shape in (None, thing.shape) and color in (None, thing.color)]
        if question.type == "existence+relation":
            assert bool(fitting) == (question.answer == "yes")
        else:
            (thing,) = fitting
            assert question.answer == (thing.color if question.type == "colour+relation" else thing.shape)


def test_often_only_the_relation_decides(asked: list[tuple[Scene, Question]]) -> None:
    rivals = Counter()
    for scene, question in asked:
        if question.type == "colour+relation":
            found = ASKED.match(question.text)
            (shape,) = [shape for shape in SHAPES if shape in split_words(found["first"])]
            rivals[sum(thing.shape == shape for thing in scene.objects) > 1] += 1
    assert rivals[True] > 0.4 * rivals.total()


def test_yes_and_no_are_as_frequent_and_words_are_known(asked: list[tuple[Scene, Question]]) -> None:
    answers = Counter(question.answer for _, question in asked if question.type == "existence+relation")
    assert 0.43 < answers["yes"] / answers.total() < 0.57
    for _, question in asked:
        assert set(split_words(question.text)) <= set(all_words())
        assert question.answer in all_answers()


def form(text: str) -> str:
    """A question with its colours, shapes and relation masked."""
    for kind, words in (("R", AXES), ("C", COLORS), ("S", SHAPES)):
        text = re.sub(rf"\ban? (?=({'|'.join(words)})\b)", "a ", text)
        text = re.sub(rf"\b({'|'.join(words)})\b", kind, text)
    return text


def test_training_never_uses_their_forms(asked: list[tuple[Scene, Question]]) -> None:
    assert form("is there an orange cube left of the red sphere?") == "is there a C S R the C S?"
    rng = np.random.default_rng(4)
    trained = {
        form(question.text)
        for scene, _ in asked
        for question in ask(scene, rng, types=[*TYPES, "where"], n=12)
    }
    assert "is the C S R the C S?" in trained
    assert not trained & {form(question.text) for _, question in asked}
