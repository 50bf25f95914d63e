"""`aegis-doctor`: what is missing on this machine or in these files, and the mend, a line each.

Imports nothing but the standard library and this project's own light modules, so that it runs on a broken installation.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from aegis_eval.doctor import files, machine
from aegis_policy.support.errors import AegisError
from aegis_policy.support.finding import Finding

_OF_THE_DATASET = {
    "--policy.instruction": "what stands in for the dataset's task",
    "--policy.input_features": "the part of the dataset that a policy reads",
    "--policy.normalization_mapping": "how state and actions are normalised",
    "--policy.use_relative_actions": "true for actions less the state",
    "--policy.relative_exclude_joints": "the joints whose actions stay absolute beside it",
    "--policy.chunk_size": "of how many actions a chunk is, of which its statistics are beside it",
    "--policy.n_action_steps": "which is 1 beside it",
    "--dataset.episodes": "those to train on",
    "--dataset.use_imagenet_stats": "false where cameras have no statistics",
}
"""Flags of a training that its checks of a dataset look at; those of the dataset they take from the command line."""
_OF_THE_ANCHOR = {
    "--policy.anchor": "what of it protects",
    "--policy.anchor_share": "how much of that",
    "--policy.train_vision_tower": "true where the tower learns too",
    "--policy.train_projector": "true where the projector learns too",
}
"""Flags of a training that its checks of an anchor look at, beside the protection."""


def main() -> None:
    """Entry point of `aegis-doctor`; status 1 if something is an error."""
    parser = argparse.ArgumentParser(
        prog="aegis-doctor", description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument(
        "--policy.path", dest="policy", type=Path, help="a checkpoint to be evaluated or trained on"
    )
    parser.add_argument("--policy.vlm", dest="vlm", default="embedded", help="the VLM to train")
    parser.add_argument("--policy.protection", dest="protection", default="aegis", help="how it is trained")
    parser.add_argument(
        "--policy.frozen_dtype", dest="frozen_dtype", default="float32", help="of what does not learn"
    )
    parser.add_argument(
        "--policy.optimizer_bits", dest="bits", type=int, default=32, help="of AdamW's moments"
    )
    parser.add_argument(
        "--policy.backbone_depth", dest="depth", type=int, help="how many decoder layers run, and learn"
    )
    parser.add_argument("--policy.anchor_path", dest="anchor", type=Path, help="the anchor to train with")
    parser.add_argument("--dataset.root", dest="dataset", type=Path, help="the LeRobotDataset to train on")
    for flag, what in {**_OF_THE_DATASET, **_OF_THE_ANCHOR}.items():
        parser.add_argument(flag, dest=flag, help=what)
    given = parser.parse_args()
    of_dataset, of_anchor = (
        [
            f"--{flag.removeprefix('--policy.')}={getattr(given, flag)}"
            for flag in flags
            if flag.startswith("--policy.") and getattr(given, flag) is not None
        ]
        for flags in (_OF_THE_DATASET, _OF_THE_ANCHOR)
    )
    findings: list[Finding] = []
    training = files.Training(given.protection, given.frozen_dtype, given.bits, given.depth)
    for finding in examine(
        given.vlm, given.anchor, given.dataset, given.policy, training, of_dataset, of_anchor
    ):
        findings.append(finding)
        print(f"{finding.status:8} {finding.what}", flush=True)
        if finding.mend:
            print(f"{'':8} -> {finding.mend}", flush=True)
    counts = [sum(each.status == status for each in findings) for status in ("error", "warning")]
    print(f"\nerrors: {counts[0]}, warnings: {counts[1]}")
    sys.exit(1 if counts[0] else 0)


def examine(
    vlm: str = "embedded",
    anchor: Path | None = None,
    dataset: Path | None = None,
    policy: Path | None = None,
    training: files.Training | None = None,
    flags: Sequence[str] = (),
    anchor_flags: Sequence[str] = (),
) -> Iterator[Finding]:
    """All findings, one by one as they are made.

    Args:
        vlm: `embedded`, a transformers directory or a hub id.
        anchor: file of an anchor of that VLM.
        dataset: folder of a LeRobotDataset.
        policy: `pretrained_model` folder of a checkpoint.
        training: how the VLM is trained, which decides how much memory it takes.
        flags: of the policy, which decide what it reads of the dataset and how.
        anchor_flags: of the policy, which decide what it needs of the anchor.
    """
    training = training or files.Training()
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("Python", machine.check_python),
        ("the installed packages", machine.check_packages),
        ("the imports", machine.check_imports),
        ("rendering", machine.check_rendering),
        ("the video backend", machine.check_video),
        ("the simulators", machine.check_simulators),
        ("the GPU", lambda: machine.check_gpu(vlm, training)),
        (
            "the VLM",
            lambda: files.check_vlm(vlm, None if policy else dataset, flags, training.backbone_depth),
        ),
    ]
    if policy is not None:
        checks.append(("the checkpoint", lambda: files.check_policy(policy, dataset)))
    if dataset is not None:
        checks.append(("the dataset", lambda: files.check_dataset(dataset, policy, flags)))
    if anchor is not None:
        needs = [f"--protection={training.protection}", *anchor_flags]
        if training.backbone_depth is not None:
            needs.append(f"--backbone_depth={training.backbone_depth}")
        checks.append(("the anchor", lambda: files.check_anchor(anchor, vlm, needs)))
    errors: set[str] = set()
    for name, check in checks:
        try:
            for finding in check():
                errors.update([str(finding)] if finding.status == "error" else [])
                yield finding
        except AegisError as error:
            if str(error) in errors:
                yield Finding(
                    "warning", f"{name} was not looked at", "mend the error that stands above first"
                )
            else:
                errors.add(str(error))
                yield Finding("error", str(error))
        except Exception as error:  # a check that fails must not hide the others
            yield Finding("error", f"{name} could not be checked ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main()
