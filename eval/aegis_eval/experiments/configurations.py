"""Whether the trainings of a plan can be configured as it says: found out before an experiment begins.

What depends on files that the experiment makes, its anchors for instance, is for the trainings to see.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields

import draccus
import yaml
from draccus.utils import DraccusException

from aegis_eval.experiments.catalogue import FRESH, TRAINED
from aegis_eval.experiments.stage import Job
from aegis_policy.support.errors import AegisError, one_line

_FLAG = "--policy."
_OWN = {"optimizer_lr": "lr", "optimizer_lr_backbone": "lr_backbone"} | {
    name: name for name in ("device", "flow_samples", "vlm")
}
"""Fields of a policy that an experiment has flags of its own for -> these."""


def check_configurations(jobs: Iterable[Job]) -> None:
    """Refuse jobs with a training whose policy cannot be so.

    Raises:
        AegisError: names the first flag that cannot be.
    """
    commands = (stage.command for job in jobs for stage in job.stages)
    trainings = (each for each in commands if any(flag.startswith((FRESH, TRAINED)) for flag in each))
    for flags in dict.fromkeys(map(_policy_flags, trainings)):
        _check(flags)


def _policy_flags(command: Sequence[str]) -> tuple[str, ...]:
    return tuple(flag for flag in command if flag.startswith(_FLAG) and not flag.startswith((FRESH, TRAINED)))


def _check(flags: Sequence[str]) -> None:
    from aegis_policy.configuration_aegis import AegisConfig  # and with it LeRobot's policies

    known = {field.name for field in fields(AegisConfig)}
    for flag in flags:
        name, given, _ = flag.removeprefix(_FLAG).partition("=")
        if name not in known or not given:
            raise AegisError(f"{flag} gives no field of AegisConfig a value: write --policy=[NAME=VALUE].")
    if (error := _error(flags)) is None:
        return
    if isinstance(error, AegisError):
        raise AegisError(_as_given(str(error))) from error
    wrong = next(flags[number] for number in range(len(flags)) if _error(flags[: number + 1]) is not None)
    raise AegisError(
        f"{_as_given(wrong)} cannot be ({_reason(error)}): correct it, or leave it out."
    ) from error


def _error(flags: Sequence[str]) -> Exception | None:
    """Why there is no configuration of these flags, if there is none."""
    from aegis_policy.configuration_aegis import AegisConfig

    plain = [f"--{flag.removeprefix(_FLAG)}" for flag in flags]
    try:
        draccus.parse(AegisConfig, args=["--device=cpu", *plain])
    except (AegisError, DraccusException, yaml.YAMLError) as error:
        return error
    return None


def _reason(error: Exception) -> str:
    """What the first of a chain of errors says."""
    while isinstance(cause := error.__cause__, Exception):
        error = cause
    return one_line(error).rstrip(".")


def _as_given(sentence: str) -> str:
    """A sentence of a policy's flags, with those of the experiment in their place."""
    for name, own in _OWN.items():
        sentence = sentence.replace(f"{_FLAG}{name}=", f"--{own}=")
    return sentence
