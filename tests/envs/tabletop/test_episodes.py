"""Instructions: unambiguous, need every word, and each split keeps its promise."""

import numpy as np
import pytest

from aegis_envs.errors import TabletopError
from aegis_envs.tabletop.episodes import SPLITS, retarget, sample_episode
from aegis_envs.tabletop.scene import TRAIN_PAIRS, UNSEEN_PAIRS
from aegis_envs.tabletop.tasks import TASKS, parse_tasks


def _episodes(task, split, count=60):
    return [sample_episode(task, split, np.random.default_rng([9, seed])) for seed in range(count)]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_a_distractor_differs_from_the_target_in_exactly_one_word(task, split):
    for episode in _episodes(task, split):
        target = episode.scene.objects[episode.scene.index(episode.target)]
        differences = [
            (thing.color != target.color) + (thing.shape != target.shape) for thing in episode.scene.objects
        ]
        assert differences.count(0) == 1
        assert 1 in differences
        assert target.name in episode.instruction


@pytest.mark.parametrize("task", TASKS)
def test_train_and_test_instruct_train_pairs_and_unseen_the_others(task):
    def pairs(split):
        return {tuple(episode.target.split()) for episode in _episodes(task, split, 150)}

    assert pairs("train") <= set(TRAIN_PAIRS)
    assert pairs("test") <= set(TRAIN_PAIRS)
    assert pairs("unseen") == set(UNSEEN_PAIRS)


def test_the_place_of_the_target_in_the_scene_says_nothing():
    slots = [episode.scene.index(episode.target) for episode in _episodes("reach", "train", 200)]
    assert min(slots.count(slot) for slot in (0, 1)) > 50


@pytest.mark.parametrize("task", TASKS)
def test_every_phrasing_is_used(task):
    episodes = _episodes(task, "train", 80)
    seen = {
        episode.instruction.replace(episode.target, "{target}").replace(f"{episode.zone} zone", "{zone} zone")
        for episode in episodes
    }
    assert seen == set(TASKS[task].phrasings)


def test_pushes_name_one_of_two_zones_whose_colours_no_object_has():
    for episode in _episodes("push", "train"):
        colors = [zone.color for zone in episode.scene.zones]
        assert len(set(colors)) == 2
        assert episode.zone in colors
        assert f"{episode.zone} zone" in episode.instruction
        assert {thing.color for thing in episode.scene.objects}.isdisjoint(colors)


def test_nothing_asked_is_done_at_the_start():
    for episode in _episodes("push", "train"):
        zone, target = episode.zone_of(), episode.scene.objects[episode.scene.index(episode.target)]
        assert np.hypot(zone.x - target.x, zone.y - target.y) > 0.08
    for task in ("reach", "pick", "bowl"):
        for episode in _episodes(task, "train"):
            target = episode.scene.objects[episode.scene.index(episode.target)]
            start = np.array(episode.start)
            assert np.linalg.norm(start - [target.x, target.y, 0.03]) > 0.12


def test_retargeting_keeps_the_scene_and_changes_only_the_words():
    episode = next(item for item in _episodes("push", "train") if len(item.scene.objects) > 2)
    other = next(thing.name for thing in episode.scene.objects if thing.name != episode.target)
    zone = next(item.color for item in episode.scene.zones if item.color != episode.zone)
    swapped = retarget(episode, other, zone)
    assert swapped.scene == episode.scene
    assert swapped.start == episode.start
    assert (swapped.target, swapped.zone) == (other, zone)
    assert swapped.instruction == episode.instruction.replace(episode.target, other).replace(
        f"{episode.zone} zone", f"{zone} zone"
    )


@pytest.mark.parametrize(
    ("text", "names"), [("all", list(TASKS)), (None, list(TASKS)), ("pick, reach", ["reach", "pick"])]
)
def test_tasks_are_chosen_by_name_list_or_all(text, names):
    assert parse_tasks(text) == names


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: parse_tasks("reach,fly"), r"--env.task=reach,fly .* choose from reach, push, pick, bowl"),
        (lambda: parse_tasks(""), "--env.task="),
        (lambda: sample_episode("reach", "val", np.random.default_rng(0)), "--env.split=val"),
        (lambda: retarget(_episodes("reach", "train", 1)[0], "pink cone"), "pink cone"),
        (
            lambda: retarget(
                _episodes("push", "train", 1)[0], _episodes("push", "train", 1)[0].target, "pink"
            ),
            "pink zone",
        ),
    ],
)
def test_a_request_that_cannot_be_says_what_can(make, names):
    with pytest.raises(TabletopError, match=names):
        make()
