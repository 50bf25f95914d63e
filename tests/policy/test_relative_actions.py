"""Actions relative to the state: what the policy learns, what the arm is sent, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import pytest
import torch
from findings import edited, told
from lerobot.datasets.dataset_tools import recompute_stats
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import make_policy, make_pre_post_processors
from torch.utils.data import default_collate

from aegis_envs.tabletop.source import TabletopSource
from aegis_eval.doctor.files import check_dataset
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.data.relative import check_relative
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError

_NAMES = {"action": ["a.pos", "b.pos", "gripper.pos"]}
_NAMES["observation.state"] = [*_NAMES["action"], "d", "e"]
_LENGTHS = [6, 7, 2]
"""Of episodes: with chunks of 4 seven whole ones, of 28 actions, in 15 frames."""
_COUNTS = {"action": {"count": [28]}, "observation.state": {"count": [15]}}


@pytest.fixture
def relative(make_config: Callable[..., AegisConfig]) -> Callable[..., AegisConfig]:
    def make(**options: Any) -> AegisConfig:
        options = {
            "use_relative_actions": True,
            "n_action_steps": 1,
            "action_feature_names": _NAMES["action"],
        } | options
        return make_config("none", **options)

    return make


def test_what_is_learned_lacks_the_state_and_what_is_sent_has_it_again(
    relative: Callable[..., AegisConfig], tmp_path: Path
) -> None:
    config = relative()
    spread = {"action": torch.tensor([2.0, 4.0, 8.0]), "observation.state": torch.ones(5)}
    stats = {key: {"mean": torch.zeros_like(std), "std": std} for key, std in spread.items()}
    before, after = make_aegis_pre_post_processors(config, stats)
    config.save_pretrained(tmp_path)
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    state_S, actions_HA = torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0]), torch.arange(12.0).view(4, 3)
    for pair in ((before, after), make_pre_post_processors(config, pretrained_path=str(tmp_path))):
        batch = {"observation.state": state_S[None], "action": actions_HA[None], "task": ["reach"]}
        learned = pair[0](batch)
        expected = (actions_HA - torch.tensor([1.0, 2.0, 0.0])) / spread["action"]
        torch.testing.assert_close(learned["action"], expected[None])
        torch.testing.assert_close(learned["observation.state"], state_S[None])
        torch.testing.assert_close(pair[1](learned["action"]), actions_HA[None])
        pair[0]({"observation.state": state_S[None] + 1, "task": ["reach"]})
        torch.testing.assert_close(pair[1](expected[:1])[0], actions_HA[0] + torch.tensor([1.0, 1.0, 0.0]))


def test_what_is_learned_is_normalised_by_its_own_statistics(
    make_config: Callable[..., AegisConfig], relative_dataset: Path
) -> None:
    chunk = {"action": [index / 10 for index in range(4)]}
    data = LeRobotDataset("local/tiny", root=relative_dataset, delta_timestamps=chunk)
    config = make_config("none", use_relative_actions=True, n_action_steps=1)
    make_policy(config, ds_meta=data.meta)
    assert config.action_feature_names == _NAMES["action"]
    before, _ = make_pre_post_processors(config, dataset_stats=data.meta.stats)
    whole = [each for each in data if not each["action_is_pad"].any()]
    learned_BHA = before(default_collate(whole))["action"]
    assert learned_BHA.shape == (9, 4, 3)
    torch.testing.assert_close(learned_BHA.mean((0, 1)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(learned_BHA.flatten(0, 1).std(0, correction=0), torch.ones(3))


def test_the_doctor_says_of_which_actions_statistics_are(relative_dataset: Path, tmp_path: Path) -> None:
    flags = ["--use_relative_actions=true", "--n_action_steps=1", "--chunk_size=4"]
    assert "error" not in told(check_dataset(relative_dataset, flags=flags))
    assert "no dimension of action relative" in told(
        check_dataset(relative_dataset, flags=[*flags, "--relative_exclude_joints=['pos']"])
    )
    data = LeRobotDataset("local/tiny", root=edited(relative_dataset, tmp_path / "absolute"))
    recompute_stats(data)
    found = told(check_dataset(data.root, flags=flags))
    assert "error: The dataset's statistics (meta/stats.json) are of absolute actions" in found
    assert "--operation.chunk_size=4 --operation.relative_exclude_joints=\"['gripper']\"" in found
    of_actions = "{STATE: MEAN_STD, ACTION: IDENTITY}"
    assert "error" not in told(
        check_dataset(data.root, flags=[*flags, f"--normalization_mapping={of_actions}"])
    )


def test_later_steps_of_a_chunk_and_joints_left_out_for_nothing_are_refused(
    relative: Callable[..., AegisConfig], make_config: Callable[..., AegisConfig]
) -> None:
    with pytest.raises(
        AegisError, match=r"use_relative_actions=true goes with --policy.n_action_steps=1, not 2"
    ):
        relative(n_action_steps=2)
    with pytest.raises(
        AegisError, match=r"relative_exclude_joints changes nothing unless --policy.use_relative"
    ):
        make_config("none", relative_exclude_joints=("wrist",))
    given = draccus.parse(
        AegisConfig,
        args=[
            "--use_relative_actions=true",
            "--n_action_steps=1",
            "--relative_exclude_joints=['wrist', 'a']",
        ],
    )
    assert given.relative_exclude_joints == ("wrist", "a")


def test_data_of_chunks_less_their_state_are_taken(relative: Callable[..., AegisConfig]) -> None:
    assert [*check_relative(relative(), _COUNTS, _NAMES, _LENGTHS)] == []
    otherwise = {**_NAMES, "observation.state": ["a.pos", "b.pos", "force", "d", "e"]}
    unread = relative(action_feature_names=None)  # as aegis-doctor has it, which makes no policy
    assert [*check_relative(unread, _COUNTS, otherwise, _LENGTHS)] == [], "of the gripper nothing is taken"
    unnamed = {key: [] for key in _NAMES}
    assert [*check_relative(relative(relative_exclude_joints=()), _COUNTS, unnamed, _LENGTHS)] == []
    as_many = {key: {"count": [8]} for key in _COUNTS}
    assert [*check_relative(relative(chunk_size=1), as_many, _NAMES, [5, 3])] == []
    assert [*check_relative(relative(), as_many, _NAMES, [4, 4])] == [], (
        "a chunk an episode, as many as frames"
    )


def test_statistics_of_chunks_of_another_length_are_told(relative: Callable[..., AegisConfig]) -> None:
    (found,) = check_relative(relative(chunk_size=2), _COUNTS, _NAMES, _LENGTHS)
    assert found.status == "warning"
    assert "of 28 actions, and its chunks of --policy.chunk_size=2 have 24" in found.what
    (found,) = check_relative(relative(chunk_size=8), _COUNTS, _NAMES, _LENGTHS)
    assert found.status == "error" and "No episode has the 8 frames" in found.what
    assert [*check_relative(relative(), _COUNTS, _NAMES, [])] == [], (
        "episodes that cannot be read are told elsewhere"
    )


@pytest.mark.parametrize(
    ("names", "counts", "sentence"),
    [
        ({**_NAMES, "action": []}, (28, 15), r"does not say what the dimensions of action are called"),
        (
            {**_NAMES, "observation.state": ["a.pos", "x", "y", "z", "e"]},
            (28, 15),
            r"takes dimension 1 of observation.state \(x\) off that of action \(b.pos\)",
        ),
        (_NAMES, (15, 15), r"are of absolute actions: as many of action as of observation.state"),
    ],
)
def test_data_that_are_something_else_are_refused(
    names: dict[str, list[str]],
    counts: tuple[int, int],
    sentence: str,
    relative: Callable[..., AegisConfig],
) -> None:
    statistics = dict(zip(_COUNTS, ({"count": np.array([count])} for count in counts), strict=True))
    (found,) = check_relative(relative(), statistics, names, _LENGTHS)
    assert found.status == "error" and re.search(sentence, found.what)


def test_the_tabletops_actions_are_ways_already(relative: Callable[..., AegisConfig]) -> None:
    names = {"action": TabletopSource.action_names, "observation.state": TabletopSource.state_names}
    (found,) = check_relative(relative(), _COUNTS, names, _LENGTHS)
    assert "takes dimension 0 of observation.state (x) off that of action (dx)" in found.what


def test_a_state_shorter_than_an_action_is_refused(relative: Callable[..., AegisConfig]) -> None:
    config = relative()
    config.input_features["observation.state"].shape = (2,)
    (found,) = check_relative(config, _COUNTS, _NAMES, _LENGTHS)
    assert "(2 dimensions) off action (3)" in found.what
