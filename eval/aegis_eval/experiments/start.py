"""The policy that every training of an experiment begins from, instead of a new one."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from lerobot.configs import PreTrainedConfig

from aegis_eval.experiments.variants import VARIANTS
from aegis_policy.checkpoint.changes import check_changes
from aegis_policy.checkpoint.checks import CONFIG_FILE, check_checkpoint
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import enforce
from aegis_policy.support.json_files import read_json

_NOTHING_LOST = "stop_gradient"
"""The protection whose VLM is the pretrained one still: under `freeze` its projector or tower may learn."""


def check_start(checkpoint: Path, *, vlm: str, variants: Iterable[str], policy: Sequence[str]) -> None:
    """See that it is a whole policy of the VLM whose answers are compared, and that every variant can go on from it.

    Args:
        checkpoint: what `--start` names.
        vlm: the pretrained VLM, as the experiment names it.
        variants: names in `VARIANTS`.
        policy: further flags of every training, without the leading `--policy.`.

    Raises:
        AegisError: it is not, or one cannot.
    """
    from aegis_policy.configuration_aegis import AegisConfig  # and with it LeRobot's policies

    enforce(check_checkpoint(checkpoint))
    own = read_json(checkpoint / CONFIG_FILE)
    if own.get("vlm") != vlm:
        raise AegisError(
            f"--start={checkpoint} is a policy of --vlm={own.get('vlm')}, not of {vlm}: name the same."
        )
    if own.get("protection") != _NOTHING_LOST:
        raise AegisError(
            f"--start={checkpoint} was trained with {own.get('protection')}, so its VLM may be another already: "
            f"name one that was trained with {_NOTHING_LOST}."
        )
    for variant in variants:
        flags = [*VARIANTS[variant].flags, *(f"--policy.{flag}" for flag in policy)]
        changed = PreTrainedConfig.from_pretrained(
            checkpoint, cli_overrides=[f"--{flag.removeprefix('--policy.')}" for flag in flags]
        )
        enforce(check_changes(checkpoint, cast(AegisConfig, changed), resumed=False))
