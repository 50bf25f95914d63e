"""What experiments can compare: each variant is a name, the flags it adds to `lerobot-train`, and its anchor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        flags: added to the training command, the protection first.
        anchor: name in `ANCHORS` of the anchor it needs, unless it needs none or the one that the embedded VLM brings.
    """

    flags: tuple[str, ...]
    anchor: str | None = None

    @property
    def protection(self) -> str:
        """The value of `--policy.protection`."""
        return self.flags[0].removeprefix("--policy.protection=")


OF_THE_VLM = "vlm"
ANCHORS: dict[str, tuple[str, ...]] = {
    OF_THE_VLM: ("--vqa=tabletop",),
    "fisher": ("--vqa=tabletop", "--kinds=[fisher]"),
    "robot": ("--vqa={data}", "--kinds=[gaussian,subspace]"),
    "both": ("--vqa=tabletop+{data}",),
}
"""Anchors -> flags of `aegis-anchor`; `{data}` is the demonstrations trained on. `OF_THE_VLM` stands in for the one
that the embedded VLM brings and others do not."""


def _of(protection: str, *flags: str, anchor: str | None = None) -> Variant:
    return Variant((f"--policy.protection={protection}", *flags), anchor)


def _aegis(kind: str, *flags: str, anchor: str | None = None) -> Variant:
    return _of("aegis", f"--policy.anchor={kind}", *flags, anchor=anchor)


VARIANTS: dict[str, Variant] = {
    "none": _of("none"),
    "stop_gradient": _of("stop_gradient"),
    "freeze": _of("freeze"),
    "lora": _of("lora"),
    "w2_penalty": _of("w2_penalty"),
    "l2_sp": _of("l2_sp"),
    "ewc": _of("ewc", anchor="fisher"),
    "replay": _of("replay"),
    "knowledge_insulation": _of("knowledge_insulation"),
    "aegis": _of("aegis"),
    "gaussian": _aegis("gaussian"),
    "subspace": _aegis("subspace"),
    "kronecker": _aegis("kronecker"),
    "subspace+gaussian": _aegis("subspace+gaussian"),
    "subspace+kronecker": _aegis("subspace+kronecker"),
    **{
        f"kronecker {energy}": _aegis("kronecker", f"--policy.anchor_energy={energy}")
        for energy in (0.8, 0.9, 0.98)
    },
    **{
        f"subspace {energy}": _aegis("subspace", f"--policy.anchor_energy={energy}")
        for energy in (0.7, 0.8, 0.95)
    },
    "kronecker soft": _aegis("kronecker", "--policy.anchor_soft=true"),
    "subspace soft": _aegis("subspace", "--policy.anchor_soft=true"),
    "subspace on gradient": _aegis("subspace", "--policy.project=gradient"),
    "gaussian on update": _aegis("gaussian", "--policy.project=update"),
    "kronecker by layer": _aegis("kronecker", "--policy.granularity=layer"),
    "subspace over all": _aegis("subspace", "--policy.granularity=all"),
    "gaussian by tensor": _aegis("gaussian", "--policy.granularity=tensor"),
    "gaussian over all": _aegis("gaussian", "--policy.granularity=all"),
    "gaussian of robot frames": _aegis("gaussian", anchor="robot"),
    "gaussian of both": _aegis("gaussian", anchor="both"),
    "subspace of robot frames": _aegis("subspace", anchor="robot"),
    "subspace of both": _aegis("subspace", anchor="both"),
    "gaussian tokens apart": _aegis("gaussian", "--policy.anchor_tokens=apart"),
    "gaussian whitened": _aegis("gaussian", "--policy.anchor_whiten=true"),
    "gaussian averaged": _aegis("gaussian", "--policy.anchor_momentum=0.9"),
    "gaussian every 4th": _aegis("gaussian", "--policy.anchor_refresh=4"),
    "gaussian restoring": _aegis("gaussian", "--policy.anchor_restoring=0.001"),
    "gaussian at its best": _aegis(
        "gaussian",
        "--policy.project=update",
        "--policy.anchor_whiten=true",
        anchor="robot",
    ),
}
