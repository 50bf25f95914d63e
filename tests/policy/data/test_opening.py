"""What LeRobot would stumble over while it opens a dataset is said before, in the doctor's words, to us alone."""

from collections.abc import Callable
from contextlib import suppress
from math import nan
from pathlib import Path

import pytest
from broken_datasets import Break, broken, feature, info, lost, without_statistics
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import factory
from lerobot.policies.act.configuration_act import ACTConfig

import lerobot_policy_aegis  # noqa: F401
from aegis_eval.doctor import files as doctor_files
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.support.errors import AegisError

FRONT = "observation.images.front"


@pytest.mark.parametrize(
    "fault",
    [
        info(fps=nan),
        info(total_tasks=0),
        feature(FRONT, names=None),
        feature(FRONT, shape=[32, 32]),
        without_statistics(FRONT),
        lost("meta/stats.json"),
    ],
)
def test_a_training_ends_with_the_doctors_sentence_before_lerobots_error(
    tiny_dataset: Path, tmp_path: Path, make_config: Callable[..., AegisConfig], fault: Break
) -> None:
    root = broken(tiny_dataset, tmp_path / "broken", fault)
    with pytest.raises(AegisError) as refused:
        factory.make_dataset(training(root, make_config("none")))
    doctor = [str(each) for each in doctor_files.check_dataset(root)]
    assert doctor[0] == str(refused.value)


def test_other_policies_are_left_alone(tiny_dataset: Path, tmp_path: Path) -> None:
    root = broken(tiny_dataset, tmp_path / "broken", without_statistics(FRONT))
    with suppress(
        KeyError
    ):  # LeRobot 0.6.1's own; its main branch opens the dataset. A refusal of ours is neither.
        factory.make_dataset(training(root, ACTConfig(device="cpu")))


def test_a_dataset_that_is_well_is_opened(
    tiny_dataset: Path, make_config: Callable[..., AegisConfig]
) -> None:
    dataset = factory.make_dataset(training(tiny_dataset, make_config("none")))
    assert dataset[0]["action"].shape == (4, 3)


def training(root: Path, policy: AegisConfig | ACTConfig) -> TrainPipelineConfig:
    return TrainPipelineConfig(dataset=DatasetConfig("local/data", root=str(root)), policy=policy)
