"""Datasets that cannot train the policy are refused before the first step."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.processor_aegis import make_aegis_pre_post_processors
from aegis_policy.support.errors import AegisError

Statistics = dict[str, dict[str, torch.Tensor]]


@pytest.fixture
def statistics() -> Statistics:
    return {
        "observation.state": {"mean": torch.zeros(5), "std": torch.ones(5)},
        "action": {"mean": torch.full((3,), 2.0), "std": torch.full((3,), 4.0)},
    }


def test_statistics_that_do_not_cover_a_feature_are_refused(
    make_config: Callable[..., AegisConfig], statistics: Statistics
) -> None:
    config = make_config("none")
    del statistics["action"]["std"]
    with pytest.raises(AegisError, match=r"no `std` of action.*MEAN_STD"):
        AegisPolicy(config, dataset_stats=statistics)
    with pytest.raises(AegisError, match=r"no `std` of action"):
        make_aegis_pre_post_processors(config, statistics)


@pytest.mark.parametrize("value", [torch.zeros(4), torch.full((5,), torch.nan)])
def test_statistics_of_another_length_or_not_finite_are_refused(
    make_config: Callable[..., AegisConfig], statistics: Statistics, value: torch.Tensor
) -> None:
    statistics["observation.state"]["mean"] = value
    with pytest.raises(AegisError, match=r"no usable `mean` of observation.state"):
        AegisPolicy(make_config("none"), dataset_stats=statistics)


def test_a_renamed_state_whose_statistics_keep_the_old_name_is_refused(
    make_config: Callable[..., AegisConfig], statistics: Statistics
) -> None:
    statistics["robot.state"] = statistics.pop("observation.state")
    with pytest.raises(AegisError, match=r"no `mean` of observation.state.*does not rename statistics"):
        AegisPolicy(make_config("none"), dataset_stats=statistics)


@pytest.mark.parametrize("tasks", [[], [""], [" ", ""]])
def test_a_dataset_whose_tasks_say_nothing_is_refused(
    make_config: Callable[..., AegisConfig], tasks: list[str]
) -> None:
    meta = SimpleNamespace(repo_id="me/data", tasks=SimpleNamespace(index=tasks), features={})
    with pytest.raises(AegisError, match="no instruction"):
        AegisPolicy(make_config("none"), dataset_meta=meta)
    AegisPolicy(make_config("none", instruction="push the T"), dataset_meta=meta)
    several = SimpleNamespace(repo_id="me/data", tasks=SimpleNamespace(index=["push", "pull"]), features={})
    with pytest.raises(AegisError, match="stand in for 2 different instructions"):
        AegisPolicy(make_config("none", instruction="push the T"), dataset_meta=several)
    with pytest.raises(AegisError, match=r"--policy\.instruction says nothing"):
        make_config("none", instruction=" ")


def test_processors_normalise_state_and_actions_and_leave_images(
    make_config: Callable[..., AegisConfig], statistics: Statistics
) -> None:
    before, after = make_aegis_pre_post_processors(make_config("none"), statistics)
    image = torch.rand(3, 32, 32)
    batch = before(
        {
            "observation.images.front": image,
            "observation.images.wrist": image,
            "observation.state": torch.zeros(5),
            "action": torch.full((3,), 6.0),
            "task": "reach",
        }
    )
    assert torch.equal(batch["observation.images.front"][0], image)
    torch.testing.assert_close(batch["action"], torch.ones(1, 3))
    assert batch["task"] == ["reach"]
    torch.testing.assert_close(after(torch.ones(1, 3)), torch.full((1, 3), 6.0))
