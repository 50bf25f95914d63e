"""What is tried for each protection before it is compared: variants and learning rates, from a JSON file.

Such a file is the plan of a comparison, written before anything is measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aegis_eval.experiments.variants import VARIANTS
from aegis_policy.support.errors import AegisError, one_line
from aegis_policy.support.json_files import read_json

REFERENCE = "none"


@dataclass(frozen=True)
class Trial:
    """One training of a protection.

    Attributes:
        variant: name in `VARIANTS`: the protection at some strength.
        lr: learning rate of the backbone.
    """

    variant: str
    lr: float


def read_trials(file: Path, lr: float) -> dict[str, list[Trial]]:
    """Protection -> its trials.

    Args:
        file: `{"none": [{"lr": 1e-4}, {"lr": 3e-4}], "l2_sp": [{"variant": "l2_sp 0.1", "lr": 3e-4}]}`, for example.
        lr: learning rate of those that name none.

    Raises:
        AegisError: it cannot be read, names what is no variant, or lacks `none`.
    """
    try:
        trials = {
            name: [Trial(**{"variant": name, "lr": lr, **each}) for each in tried]
            for name, tried in read_json(file).items()
        }
        for name, tried in trials.items():
            _check(name, tried)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise AegisError(
            f"--trials={file} cannot be read ({one_line(error)}): it maps each protection to a list of objects with "
            "variant and lr."
        ) from error
    if REFERENCE not in trials:
        raise AegisError(
            f"--trials={file} does not try {REFERENCE}, which everything is compared with: add it."
        )
    if others := [each.variant for each in trials[REFERENCE] if each.variant != REFERENCE]:
        raise AegisError(
            f"--trials={file} tries {others[0]} as {REFERENCE}: give it a name of its own, since all is "
            f"compared with {REFERENCE}."
        )
    every = [each for tried in trials.values() for each in tried]
    for name, tried in trials.items():
        elsewhere = {each.variant for other, found in trials.items() if other != name for each in found}
        if shared := [each.variant for each in tried if each.variant in elsewhere]:
            raise AegisError(f"--trials={file} tries {shared[0]} under two names: leave it out of one.")
    if twice := [each for each in every if every.count(each) > 1]:
        raise AegisError(
            f"--trials={file} has {twice[0].variant} at {twice[0].lr:g} twice: leave one of them out."
        )
    return trials


def _check(name: str, tried: list[Any]) -> None:
    if not tried:
        raise ValueError(f"{name} has no trial")
    for each in tried:
        if each.variant not in VARIANTS:
            raise ValueError(f"{each.variant!r} is unknown; there are: {', '.join(VARIANTS)}")
        if not isinstance(each.lr, int | float) or not each.lr > 0:
            raise ValueError(f"the lr {each.lr!r} of {name} is no positive number")
