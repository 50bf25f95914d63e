"""What would fail a checkpoint fails before training; one that fails all the same leaves nothing behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from training_steps import MakePolicy, build_optimizer

from aegis_policy.checkpoint.files import TrainingState
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.modeling_aegis import AegisPolicy
from aegis_policy.support.errors import AegisError

MakeConfig = Callable[..., AegisConfig]


@pytest.fixture
def trained(make_config: MakeConfig, tiny_dataset: Path) -> AegisPolicy:
    """A policy as LeRobot makes it for a training."""
    return AegisPolicy(
        make_config("none"), dataset_meta=LeRobotDatasetMetadata("local/tiny", root=tiny_dataset)
    )


def _unwritable_configuration(policy: AegisPolicy) -> None:
    policy.config.anchor_info = {"made": object()}  # type: ignore[dict-item]


def _broken_state(policy: AegisPolicy) -> None:
    policy._training_state = TrainingState(steps="two")  # type: ignore[arg-type]


def _broken_processor(policy: AegisPolicy) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("Object of type dtype is not JSON serializable")

    policy.vlm.processor.save_pretrained = fail


BREAK = [_unwritable_configuration, _broken_state, _broken_processor]


@pytest.mark.parametrize("broken", BREAK)
def test_what_would_fail_a_checkpoint_is_said_before_the_first_step(
    trained: AegisPolicy, broken: Callable[[AegisPolicy], None]
) -> None:
    broken(trained)
    with pytest.raises(AegisError, match=r"(be saved|cannot be saved).*Error"):
        trained.get_optim_params()


def test_a_policy_that_can_be_saved_may_train(trained: AegisPolicy) -> None:
    assert trained.get_optim_params()


@pytest.mark.parametrize("broken", BREAK)
def test_a_save_that_fails_leaves_nothing(
    make_policy: MakePolicy, tmp_path: Path, broken: Callable[[AegisPolicy], None]
) -> None:
    policy = make_policy("none")
    build_optimizer(policy)
    policy.save_pretrained(tmp_path / "before")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "before").rglob("*"))}
    broken(policy)
    for folder in ("before", "after"):
        with pytest.raises((AegisError, TypeError, ValueError, RuntimeError)):
            policy.save_pretrained(tmp_path / folder)
    assert not (tmp_path / "after").exists()
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "before").rglob("*"))} == before
    assert AegisPolicy.from_pretrained(tmp_path / "before").config.protection == "none"


def test_the_configuration_says_what_the_optimizer_was_told(make_policy: MakePolicy, tmp_path: Path) -> None:
    policy = make_policy("none")
    optimizer = policy.config.get_optimizer_preset()
    optimizer.grad_clip_norm, optimizer.betas = 0.5, (0.8, 0.9)  # as --optimizer.* sets them
    optimizer.build(policy.get_optim_params())
    policy.save_pretrained(tmp_path)
    saved = AegisPolicy.from_pretrained(tmp_path).config
    assert saved.optimizer_grad_clip_norm == 0.5 and saved.optimizer_betas == (0.8, 0.9)
