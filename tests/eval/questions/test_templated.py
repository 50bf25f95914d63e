from collections import Counter, defaultdict

import numpy as np
import pytest

from aegis_envs.tabletop.scene import COLORS, SHAPES, Bowl, Scene, SceneObject, Zone, sample_scene
from aegis_eval.questions.templated import (
    TYPES,
    Question,
    all_answers,
    all_words,
    ask,
    detection_caption,
    scene_caption,
    split_words,
    table_place,
)

SCENES = 600


def random_scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(5)
    scenes = []
    for index in range(count):
        bowl = Bowl(0.1, 0.0) if index % 5 == 0 else None
        scenes.append(sample_scene(rng, (1, 4), bowl=bowl))
    return scenes


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(3)
    pairs = []
    for scene in random_scenes(SCENES):
        for kind in TYPES:
            pairs += [(scene, question) for question in ask(scene, rng, types=[kind], n=1)]
    return pairs


def named(scene: Scene, text: str) -> list[SceneObject]:
    """Objects of the scene named in full, in the order in which the text names them."""
    found = [thing for thing in scene.objects if thing.name in text]
    return sorted(found, key=lambda thing: text.index(thing.name))


def uv(scene: Scene, thing: SceneObject) -> np.ndarray:
    return np.array(table_place(scene)(thing))


def test_every_word_of_questions_answers_and_captions_is_in_the_vocabulary(asked):
    words, answers = set(all_words()), set(all_answers())
    rng = np.random.default_rng(0)
    for _, question in asked:
        assert set(split_words(question.text)) <= words
        assert question.answer in answers
        assert question.text == question.text.lower()
    for scene in random_scenes(100):
        for text in (*detection_caption(scene), *scene_caption(scene, rng)):
            assert set(split_words(text)) <= words
        for question in ask(scene, rng, types=["where"], n=2):
            assert set(split_words(question.text + " " + question.answer)) <= words


def test_the_vocabulary_takes_task_instructions_in():
    assert {"shove", "gently"} <= set(all_words(["Shove the red cube gently."]))
    assert len(all_words()) < 160


def test_colour_and_shape_are_asked_only_of_something_that_is_alone_in_what_names_it(asked):
    for scene, question in asked:
        if question.type == "colour":
            (shape,) = [shape for shape in SHAPES if shape in question.text]
            assert [thing.color for thing in scene.objects if thing.shape == shape] == [question.answer]
        if question.type == "shape":
            (color,) = [color for color in COLORS if color in question.text.split()]
            assert [thing.shape for thing in scene.objects if thing.color == color] == [question.answer]


def test_counts_are_counted(asked):
    for scene, question in asked:
        if question.type != "count":
            continue
        colors = [color for color in COLORS if color in question.text.split()]
        shapes = [shape for shape in SHAPES if f"{shape}s" in question.text]
        matching = [
            thing
            for thing in scene.objects
            if (not colors or thing.color in colors) and (not shapes or thing.shape in shapes)
        ]
        assert str(len(matching)) == question.answer
        if not colors and not shapes:
            assert scene.bowl is None, "a bowl might be counted as an object"


def test_existence_is_true_and_no_is_mostly_a_near_miss(asked):
    near = total = 0
    for scene, question in asked:
        if question.type != "existence":
            continue
        (pair,) = [(c, s) for c in COLORS for s in SHAPES if f"{c} {s}" in question.text]
        present = {thing.pair for thing in scene.objects}
        assert (pair in present) == (question.answer == "yes")
        if question.answer == "no" and len(scene.objects) > 1:
            total += 1
            near += pair[0] in {c for c, _ in present} and pair[1] in {s for _, s in present}
    assert near / total > 0.5


def test_relations_hold_by_a_clear_margin(asked):
    axes = {"left": (0, -1), "right": (0, 1), "behind": (1, -1), "front": (1, 1)}
    for scene, question in asked:
        if question.type != "relation":
            continue
        subjects = named(scene, question.text)
        if question.answer in ("yes", "no"):
            (word,) = [word for word in axes if word in split_words(question.text)]
            axis, sign = axes[word]
            offset = sign * (uv(scene, subjects[0]) - uv(scene, subjects[1]))[axis]
            assert (offset > 0) == (question.answer == "yes")
            assert abs(offset) >= 0.07
        elif question.answer in axes:
            axis, sign = axes[question.answer]
            things = {thing.name: uv(scene, thing)[axis] for thing in subjects}
            other_first = question.text.startswith("on which side")
            subject, other = (subjects[1], subjects[0]) if other_first else (subjects[0], subjects[1])
            assert sign * (things[subject.name] - things[other.name]) >= 0.07
        else:
            (word,) = [word for word in axes if word in split_words(question.text)]
            axis, sign = axes[word]
            reference = subjects[0]
            beyond = [
                thing.name
                for thing in scene.objects
                if thing is not reference and sign * (uv(scene, thing) - uv(scene, reference))[axis] > 0
            ]
            assert beyond == [question.answer]


def test_extremes_are_won_by_a_clear_margin(asked):
    ends = {
        (0, -1): ("leftmost", "left"),
        (0, 1): ("rightmost", "right"),
        (1, 1): ("nearest", "front"),
        (1, -1): ("farthest", "back"),
    }
    for scene, question in asked:
        if question.type != "extreme":
            continue
        words = split_words(question.text)
        ((axis, sign),) = [end for end, names in ends.items() if set(names) & set(words)]
        ranked = sorted(scene.objects, key=lambda thing: -sign * uv(scene, thing)[axis])
        best, second = (sign * uv(scene, thing)[axis] for thing in ranked[:2])
        assert question.answer in (ranked[0].name, ranked[0].color, ranked[0].shape)
        assert best - second >= 0.07


def test_answers_are_balanced(asked):
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, question in asked:
        answers[question.type][question.answer] += 1
    assert set(answers) == set(TYPES)
    yes = answers["existence"]["yes"] / answers["existence"].total()
    assert 0.43 < yes < 0.57
    assert 0.4 < answers["relation"]["yes"] / (answers["relation"]["yes"] + answers["relation"]["no"]) < 0.6
    assert max(answers["count"].values()) / answers["count"].total() < 0.5
    assert set(answers["count"]) == {"0", "1", "2", "3", "4"}
    assert max(answers["colour"].values()) / answers["colour"].total() < 0.25
    assert max(answers["shape"].values()) / answers["shape"].total() < 0.45


def test_the_same_seed_asks_the_same():
    scene = random_scenes(3)[2]
    assert ask(scene, np.random.default_rng(1)) == ask(scene, np.random.default_rng(1))


def test_no_question_is_asked_twice_and_an_empty_choice_is_an_error():
    scene = random_scenes(1)[0]
    texts = [question.text for question in ask(scene, np.random.default_rng(0), n=30)]
    assert len(texts) == len(set(texts))
    with pytest.raises(ValueError, match="unknown question type mood: choose from colour"):
        ask(scene, np.random.default_rng(0), types=["mood"])


def test_image_positions_decide_what_is_left_and_where_things_are():
    scene = Scene(
        (SceneObject("red", "cube", 0, -0.1), SceneObject("blue", "sphere", 0, 0.1)), (Zone("white", 0, 0),)
    )
    assert detection_caption(scene)[1].endswith("blue sphere")
    mirrored = {"red": 0.8, "blue": 0.1, "white": 0.5}
    caption = detection_caption(scene, lambda item: (mirrored[item.color], 0.4))[1]
    assert caption == "x01 y06 blue sphere ; x12 y06 red cube"


def test_every_nameable_thing_can_be_located():
    scene = Scene((SceneObject("red", "cube", 0, -0.1),), (Zone("white", 0.1, 0.1),), Bowl(-0.1, 0.1))
    rng = np.random.default_rng(0)
    found = {
        question.text.split("the ")[1].rstrip("?") for question in ask(scene, rng, types=["where"], n=12)
    }
    assert found == {"red cube", "white zone", "bowl"}
