"""A training's configuration that somebody has mistyped is refused, or one that can be saved: never half of each.

What is wrong in it may be said by LeRobot and its parser, or by us in a sentence; our code raises nothing else.
"""

import json
import logging
import random
import re
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import draccus
import pytest
import yaml
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.envs.configs import EnvConfig
from lerobot.optim import LRSchedulerConfig, OptimizerConfig
from mutants import NASTY_TEXTS, mutate_json, mutate_text

import lerobot_policy_aegis  # noqa: F401  registers what is parsed
from aegis_policy.configuration_aegis import AegisConfig
from aegis_policy.protections import PROTECTIONS
from aegis_policy.support.errors import AegisError

FEW, MANY = 50, 2_000
_OURS = ("aegis_policy", "aegis_envs")
SECTIONS: dict[str, Any] = {
    "policy": PreTrainedConfig,
    "env": EnvConfig,
    "optimizer": OptimizerConfig,
    "scheduler": LRSchedulerConfig,
}
ENVS = (
    {"type": "aegis_tabletop", "task": "reach", "split": "train", "episode_length": 30},
    {"type": "aegis_metaworld", "task": "reach-v3,easy", "image_size": 64},
    {"type": "aegis_libero", "task": "libero_10"},
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nothing is logged of thousands of configurations."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def trainings() -> list[dict[str, Any]]:
    """What `train_config.json` holds of ours, of a training with each protection, in every environment."""
    written = []
    for index, protection in enumerate(PROTECTIONS):
        policy = AegisConfig(device="cpu", protection=protection)
        training = TrainPipelineConfig(
            dataset=DatasetConfig("me/data"),
            policy=policy,
            env=draccus.decode(EnvConfig, ENVS[index % len(ENVS)]),
            optimizer=policy.get_optimizer_preset(),
            scheduler=policy.get_scheduler_preset(),
        )
        whole = json.loads(json.dumps(draccus.encode(training)))
        written.append({"dataset": {"repo_id": "me/data"}, **{name: whole[name] for name in SECTIONS}})
    return written


def _as_json(training: dict[str, Any], rng: random.Random) -> Any:
    text = json.dumps(training, indent=2)
    return json.loads(mutate_text(text, rng) if rng.random() < 0.3 else text)


def _as_yaml(training: dict[str, Any], rng: random.Random) -> Any:
    text = yaml.safe_dump(training, allow_unicode=True, sort_keys=False)
    with draccus.config_type("yaml"):
        return draccus.cfgparsing.load_config(
            StringIO(mutate_text(text, rng) if rng.random() < 0.3 else text)
        )


def _as_flags(training: dict[str, Any], rng: random.Random) -> Any:
    """A flag of the policy, spelled as somebody might: its value in JSON, or any text."""
    policy = training["policy"]
    name = rng.choice(sorted(policy)) if isinstance(policy, dict) and policy else "vlm"
    typed = json.dumps(policy[name]) if isinstance(policy, dict) and policy else "{}"
    typed = rng.choice((typed, mutate_text(typed, rng), rng.choice(NASTY_TEXTS)))
    return {
        "dataset": training["dataset"],
        "policy": {"type": "aegis", name: draccus.cfgparsing.parse_string(typed)},
    }


FORMS: dict[str, Callable[[dict[str, Any], random.Random], Any]] = {
    "JSON": _as_json,
    "YAML": _as_yaml,
    "flags": _as_flags,
}


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_mutants_of_a_training_s_configuration_are_refused_or_saved(
    trainings: list[dict[str, Any]], form: str, count: int
) -> None:
    refused = 0
    for seed in range(count):
        rng = random.Random(f"{form} {seed}")
        training = dict(rng.choice(trainings))
        section = rng.choice(("policy", "policy", *SECTIONS))
        training[section] = mutate_json(training[section], rng, rng.randint(1, 2))
        try:
            parsed = draccus.decode(TrainPipelineConfig, FORMS[form](training, rng))
        except Exception as error:
            refused += 1
            _check_refusal(error, f"{form} {seed}: {json.dumps(training[section])[:2000]}")
        else:
            for name, kind in SECTIONS.items():
                if (value := getattr(parsed, name)) is not None:
                    saved = json.dumps(draccus.encode(value, kind), allow_nan=False)
                    assert draccus.decode(kind, json.loads(saved)) == value, (form, seed, name)
    assert count // 10 < refused < count


def _check_refusal(error: Exception, seen: str) -> None:
    """It is a sentence of ours, or nothing in it was raised by our code."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, AegisError):
            assert re.search(rf"--({'|'.join(SECTIONS)})\.\w+", str(cause)) and str(cause).endswith("."), seen
            return
    if any(_raised_by_us(cause) for cause in causes):
        raise AssertionError(seen) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _raised_by_us(error: BaseException) -> bool:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and bool({*Path(frame.tb_frame.f_code.co_filename).parts} & {*_OURS})
