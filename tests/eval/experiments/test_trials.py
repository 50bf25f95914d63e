"""What is tried for each protection, from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from aegis_eval.experiments.trials import Trial, read_trials
from aegis_policy.support.errors import AegisError


def _file(folder: Path, written: Any) -> Path:
    path = folder / "trials.json"
    path.write_text(json.dumps(written))
    return path


def test_a_trial_is_a_variant_at_a_rate_by_default_the_protection_at_the_common_one(tmp_path: Path) -> None:
    file = _file(tmp_path, {"none": [{}, {"lr": 1e-3}], "aegis": [{"variant": "subspace 0.05"}]})
    assert read_trials(file, 3e-4) == {
        "none": [Trial("none", 3e-4), Trial("none", 1e-3)],
        "aegis": [Trial("subspace 0.05", 3e-4)],
    }


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ({"none": [{"variant": "prayer"}]}, "'prayer' is unknown; there are: none"),
        ({"none": []}, "none has no trial"),
        ({"none": [{"rate": 1}]}, "it maps each protection to a list"),
        ({"none": [{"lr": 0}]}, "the lr 0 of none is no positive number"),
        ({"none": [{"lr": "1"}]}, "the lr '1' of none is no positive number"),
        ([1], "it maps each protection"),
        ({"aegis": [{}]}, "does not try none"),
        ({"none": [{}, {"lr": 3e-4}]}, "has none at 0.0003 twice"),
        ({"none": [{"variant": "none eps 1e-05"}]}, "tries none eps 1e-05 as none: give it a name"),
        (
            {"none": [{}], "aegis": [{}], "other": [{"variant": "aegis", "lr": 1}]},
            "tries aegis under two names",
        ),
    ],
)
def test_what_cannot_be_tried_is_named(tmp_path: Path, written: Any, sentence: str) -> None:
    with pytest.raises(AegisError, match=sentence):
        read_trials(_file(tmp_path, written), 3e-4)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AegisError, match=r"--trials=.*absent\.json cannot be read"):
        read_trials(tmp_path / "absent.json", 3e-4)
