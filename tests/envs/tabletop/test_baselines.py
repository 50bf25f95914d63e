"""Arms that ignore their instruction: what they succeed in, against what each scene says by itself."""

import numpy as np
import pytest

from aegis_envs.tabletop.baselines import ARMS, named_shares, success_shares
from aegis_envs.tabletop.env import seeded_episode
from aegis_envs.tabletop.episodes import SPLITS
from aegis_envs.tabletop.tasks import TASKS
from aegis_policy.support.errors import AegisError

SEEDS = range(1000, 1012)


@pytest.mark.parametrize("split", SPLITS)
def test_an_arm_succeeds_where_it_happens_to_go_to_what_is_named(split):
    found = success_shares("reach", split, SEEDS)
    episodes = [seeded_episode("reach", split, seed) for seed in SEEDS]
    assert found["expert"] == [1.0] * len(SEEDS)
    for episode, nearest, any_of_them in zip(
        episodes, found["nearest object"], found["any object"], strict=True
    ):
        places = {thing.name: np.hypot(thing.x, thing.y) for thing in episode.scene.objects}
        assert nearest == (min(places, key=places.get) == episode.target)
        assert any_of_them == pytest.approx(1 / len(places))
    assert 0 < sum(found["nearest object"]) < len(SEEDS)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "reach"])
def test_serving_another_object_is_no_success_in_any_task(task):
    found = success_shares(task, "test", range(3))
    assert found["expert"] == [1.0] * 3
    assert max(found["any object"]) <= 0.5, "there are two objects at least"


def test_the_same_scenes_give_the_same_shares_whatever_was_done_before():
    alone = success_shares("pick", "test", [7])
    assert success_shares("pick", "test", [3, 7])["nearest object"][1:] == alone["nearest object"]


def test_an_arm_that_ignores_its_instruction_goes_to_the_named_one_half_the_time_at_most():
    from dataclasses import replace

    own = [seeded_episode("reach", "test", seed) for seed in SEEDS]
    every = [[replace(each, target=thing.name) for thing in each.scene.objects] for each in own]
    for episodes in every:
        shares = named_shares(episodes)
        assert sum(shares["nearest object"]) == 1 and sum(shares["expert"]) == len(episodes)
        assert sum(shares["any object"]) == pytest.approx(1)
    assert set(named_shares(own)) == set(ARMS)


def test_what_is_no_task_or_split_is_refused():
    with pytest.raises(AegisError, match="not a tabletop split"):
        success_shares("reach", "validation", SEEDS)
