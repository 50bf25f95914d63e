"""Anchors of an experiment: which one a variant needs, where it lies, and the jobs that make those no VLM brings."""

from collections.abc import Iterable
from pathlib import Path

from aegis_eval.experiments import catalogue
from aegis_eval.experiments.cameras import names_in
from aegis_eval.experiments.plan import alone
from aegis_eval.experiments.stage import Job
from aegis_eval.experiments.variants import ANCHORS, OF_THE_VLM, VARIANTS
from aegis_policy.pretrained import EMBEDDED_VLM


def anchor_jobs(
    root: Path,
    variants: Iterable[str],
    *,
    data: Path,
    cameras: str | None,
    device: str | None,
    vlm: str = EMBEDDED_VLM,
    vqa: str = "tabletop",
) -> list[Job]:
    """The anchors that have to be made before these variants train on a VLM, some of them from the demonstrations.

    Args:
        root: of the experiment.
        variants: names in `VARIANTS`.
        data: folder of the demonstrations.
        cameras: which of their cameras the policy sees, with commas; None for all.
        device: `cuda` or `cpu`.
        vlm: the pretrained VLM.
        vqa: what shows it what it must not forget; see `aegis-anchor --vqa`.
    """
    seen = [f"--cameras={','.join(names_in(cameras))}"] if cameras else []
    needed = {_needed(variant, vlm) for variant in variants}
    return [
        alone(
            catalogue.anchor(
                name,
                _file(root, name),
                vlm=vlm,
                device=device,
                flags=[*(flag.format(data=data, vqa=vqa) for flag in ANCHORS[name]), *seen],
            ),
            root,
        )
        for name in sorted(filter(None, needed))
    ]


def anchor_flags(root: Path, variant: str, vlm: str = EMBEDDED_VLM) -> list[str]:
    """What names a variant's anchor to `lerobot-train`; nothing where it needs none or the VLM brings it."""
    name = _needed(variant, vlm)
    return [f"--policy.anchor_path={_file(root, name)}"] if name is not None else []


def _needed(variant: str, vlm: str) -> str | None:
    """Name in `ANCHORS` of the anchor that has to be made."""
    anchor = VARIANTS[variant].anchor
    return None if anchor == OF_THE_VLM and vlm == EMBEDDED_VLM else anchor


def _file(root: Path, name: str) -> Path:
    return root / "anchors" / f"{name}.safetensors"
