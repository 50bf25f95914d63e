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


SHARES = (0.02, 0.05, 0.1, 0.25, 0.5)
"""Shares of the input directions that `subspace` is tried with."""
OF_THE_VLM = "vlm"
ANCHORS: dict[str, tuple[str, ...]] = {
    OF_THE_VLM: ("--vqa=tabletop", "--kinds=[gaussian,subspace]", f"--share={max(SHARES)}"),
    "fisher": ("--vqa=tabletop", "--kinds=[fisher]"),
    "robot": ("--vqa={data}", "--kinds=[gaussian,subspace]"),
    "both": ("--vqa=tabletop+{data}", "--kinds=[gaussian,subspace]"),
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
    "subspace+gaussian": _aegis("subspace+gaussian"),
    **{f"subspace {share}": _aegis("subspace", f"--policy.anchor_share={share}") for share in SHARES},
    "gaussian of robot frames": _aegis("gaussian", anchor="robot"),
    "gaussian of both": _aegis("gaussian", anchor="both"),
    "subspace of robot frames": _aegis("subspace", anchor="robot"),
    "subspace of both": _aegis("subspace", anchor="both"),
}
