"""What `aegis-doctor` says of a checkpoint of LeRobot's own policies, protected or not: what a training would find.

Weights are loaded for it, on the CPU.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from aegis_policy.support.finding import Finding

if TYPE_CHECKING:
    from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata


def check_vla(folder: Path) -> Iterator[Finding]:
    """Whether all weights are there, and whether a training could go on under the protection.

    Args:
        folder: `pretrained_model` of the policy.

    Raises:
        AegisError: it cannot be loaded, or its anchor is missing or another VLM's.
    """
    from aegis_eval.checkpoints import load_vla
    from aegis_policy.lerobot_vlas.modeling_vlas import ProtectedVLA

    policy, _ = load_vla(str(folder))
    if isinstance(policy, ProtectedVLA):
        policy.get_optim_params()
        yield Finding("ok", f"{folder}: {policy.config.protection} of the VLM in a {policy.name}")
    else:
        yield Finding("ok", f"{folder}: a {policy.name} without a protection")


def check_data(meta: "LeRobotDatasetMetadata") -> Iterator[Finding]:
    """Whether LeRobot can train on a dataset, as far as it does not say so itself."""
    from aegis_policy.data.checks import check_opening
    from aegis_policy.data.frames import check_frames
    from aegis_policy.data.records import check_instructions, check_records

    for check in (check_opening, check_frames, check_records):
        yield from check(meta)
    yield from check_instructions(meta, None)
