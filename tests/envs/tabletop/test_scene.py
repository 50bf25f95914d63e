"""Scenes as data: what is drawn, what is refused, what survives JSON."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.scene import (
    ALL_PAIRS,
    BOWL_RADIUS,
    COLORS,
    OBJECT_GAP,
    OBJECT_X,
    OBJECT_Y,
    SHAPES,
    TRAIN_PAIRS,
    UNSEEN_PAIRS,
    Bowl,
    Scene,
    SceneObject,
    Zone,
    sample_scene,
)


def test_unseen_pairs_are_never_train_pairs_but_all_their_words_are():
    assert set(TRAIN_PAIRS).isdisjoint(UNSEEN_PAIRS)
    assert set(TRAIN_PAIRS) | set(UNSEEN_PAIRS) == set(ALL_PAIRS)
    assert {color for color, _ in TRAIN_PAIRS} == set(COLORS)
    assert {shape for _, shape in TRAIN_PAIRS} == set(SHAPES)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_objects_never_overlap_and_never_repeat_a_pair(seed):
    bowl = Bowl(0.08, 0.1)
    scene = sample_scene(np.random.default_rng(seed), bowl=bowl)
    assert 2 <= len(scene.objects) <= 4
    assert len({thing.pair for thing in scene.objects}) == len(scene.objects)
    for one, other in itertools.combinations(scene.objects, 2):
        assert np.hypot(one.x - other.x, one.y - other.y) >= OBJECT_GAP - 1e-3
    for thing in scene.objects:
        assert OBJECT_X[0] <= thing.x <= OBJECT_X[1]
        assert OBJECT_Y[0] <= thing.y <= OBJECT_Y[1]
        assert np.hypot(thing.x - bowl.x, thing.y - bowl.y) > BOWL_RADIUS + 0.03


def test_a_seed_draws_the_same_scene_again_and_another_seed_another_one():
    first, again, other = (sample_scene(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_pairs_asked_for_are_there():
    scene = sample_scene(np.random.default_rng(0), (2, 2), include=[("white", "cube"), ("cyan", "sphere")])
    assert [thing.name for thing in scene.objects] == ["white cube", "cyan sphere"]


def test_a_scene_survives_json():
    scene = sample_scene(np.random.default_rng(1), zones=[Zone("red", 0.12, 0.1)], bowl=Bowl(0.1, -0.1))
    assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: Scene((SceneObject("pink", "cube", 0, 0),)), "pink"),
        (lambda: Scene((SceneObject("red", "cone", 0, 0),)), "cone"),
        (lambda: Scene((), zones=(Zone("red", 0, 0),) * 3), "at most 4 objects and 2 zones"),
        (lambda: Scene((SceneObject("red", "cube", 0, 0),)).index("blue cube"), "blue cube"),
        (lambda: sample_scene(np.random.default_rng(0), (4, 4), x_range=(0, 0.05), y_range=(0, 0.05)), "fit"),
    ],
)
def test_a_scene_that_cannot_be_says_why(make, names):
    with pytest.raises(TabletopError, match=names):
        make()
