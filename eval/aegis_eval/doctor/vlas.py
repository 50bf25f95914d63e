"""What `aegis-doctor` says of a checkpoint of LeRobot's own policies, protected or not: what a training would find.

Weights are loaded for it, on the CPU.
"""

from collections.abc import Iterator
from pathlib import Path

from aegis_policy.support.errors import some
from aegis_policy.support.finding import Finding


def check_vla(folder: Path) -> Iterator[Finding]:
    """Whether all weights are there and finite, its processors whole, and whether a training could go on protected.

    Args:
        folder: `pretrained_model` of the policy.

    Raises:
        AegisError: it cannot be loaded, or its anchor is missing or another VLM's.
    """
    from aegis_eval.checkpoints import load_vla
    from aegis_policy.checkpoint.checks import check_processors
    from aegis_policy.lerobot_vlas.modeling_vlas import ProtectedVLA

    unfit = [*check_processors(folder)]
    yield from unfit
    policy, _ = load_vla(str(folder))
    broken = [name for name, weight in policy.named_parameters() if not weight.isfinite().all()]
    if broken:
        yield Finding(
            "error",
            f"{folder} holds weights that are not finite: {some(broken)}",
            "take an earlier checkpoint",
        )
    if unfit or broken:
        return
    if isinstance(policy, ProtectedVLA):
        policy.get_optim_params()
        yield Finding("ok", f"{folder}: {policy.config.protection} of the VLM in a {policy.name}")
        for coverage in policy.protection.coverages():
            yield from coverage.findings()
    else:
        yield Finding("ok", f"{folder}: a {policy.name} without a protection")
