from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from aegis_eval.questions.sample import fingerprint
from aegis_eval.questions.store import SOURCES
from aegis_eval.questions.tabletop import (
    TABLETOP,
    load_benchmark,
    load_samples,
    sample_images,
)
from aegis_eval.questions.templated import TYPES
from aegis_policy.support.errors import AegisError

SCENES = 12


@pytest.fixture(scope="module")
def samples():
    return load_benchmark("tabletop", "test", SCENES)


def test_a_benchmark_is_the_same_every_time(samples):
    again = load_benchmark("tabletop", "test", SCENES)
    assert fingerprint(again) == fingerprint(samples)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(again, samples, strict=True))


def test_splits_and_seeds_share_no_scene(samples):
    images = {sample.image.tobytes() for sample in samples}
    for split, seed in (("train", 0), ("val", 0), ("test", 1)):
        others = load_benchmark("tabletop", split, SCENES, seed)
        assert not images & {sample.image.tobytes() for sample in others}
        assert not {sample.id for sample in samples} & {sample.id for sample in others}


def test_samples_have_images_and_unique_ids_and_at_most_one_question_a_type(samples):
    assert len({sample.id for sample in samples}) == len(samples)
    kinds = Counter(sample.type for sample in samples)
    assert set(kinds) <= set(TYPES)
    assert max(kinds.values()) <= SCENES
    for sample in samples:
        assert sample.image.shape == (96, 96, 3) and sample.image.dtype == np.uint8
        assert sample.image.std() > 5, "an image shows something"


@pytest.mark.parametrize("name", ["tabletop_composed", "tabletop_robot"])
def test_every_benchmark_names_its_images_so_that_they_can_be_made_again(name):
    few = load_samples(name, "test", 6)
    assert {sample.type for sample in few} <= set(TABLETOP[name].types)
    images = sample_images([few[0].id, few[-1].id])
    for sample in (few[0], few[-1]):
        assert np.array_equal(images[sample.id], sample.image)


def test_the_number_of_samples_is_the_one_asked_for(samples):
    few = load_samples("tabletop", "test", 20)
    assert [sample.id for sample in few] == [sample.id for sample in samples[:20]]


def test_a_larger_benchmark_is_rendered_by_processes_and_begins_with_the_smaller_one(
    samples, cache_dir, monkeypatch
):
    monkeypatch.setitem(SOURCES, "scenes", replace(SOURCES["scenes"], chunk=5))
    larger = load_benchmark("tabletop", "test", 101, cache_dir=cache_dir, num_workers=2)
    assert fingerprint(larger[: len(samples)]) == fingerprint(samples)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(larger, samples, strict=False))
    assert any(cache_dir.iterdir()), "rendered scenes are kept"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("okvqa2", "test", 1), "--benchmark=okvqa2 is not known: choose from tabletop"),
        (("tabletop", "dev", 1), "--split=dev does not exist in tabletop: choose from train, val, test"),
        (("tabletop", "test", 0), "--samples=0 asks for nothing"),
    ],
)
def test_what_does_not_exist_is_named(arguments, sentence):
    with pytest.raises(AegisError, match=sentence):
        load_samples(*arguments)
