"""What experiments can compare: each variant is a name, the flags it adds to `lerobot-train`, and its anchor."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        flags: added to the training command, the protection first.
        anchor: name in `ANCHORS` of the anchor it needs, if it needs one.
    """

    flags: tuple[str, ...]
    anchor: str | None = None


SHARES = (0.02, 0.03, 0.05, 0.07, 0.1, 0.25, 0.5)
"""Shares of the input directions that `subspace` is tried with."""
OF_THE_VLM = "vlm"
ANCHORS: dict[str, tuple[str, ...]] = {
    OF_THE_VLM: ("--vqa={vqa}", "--kinds=[gaussian,subspace]", f"--share={max(SHARES)}"),
    "fisher": ("--vqa={vqa}", "--kinds=[fisher]"),
    "robot": ("--vqa={data}", "--kinds=[gaussian,subspace]"),
    "both": ("--vqa={vqa}+{data}", "--kinds=[gaussian,subspace]"),
}
"""Anchors -> flags of `aegis-anchor`; `{vqa}` is what shows the VLM what it must not forget, `{data}` the
demonstrations trained on. `OF_THE_VLM` is the one that the embedded VLM brings and others do not."""


def _of(protection: str, *flags: str, anchor: str | None = None) -> Variant:
    return Variant((f"--policy.protection={protection}", *flags), anchor)


def _aegis(kind: str, *flags: str, anchor: str = OF_THE_VLM) -> Variant:
    return _of("aegis", f"--policy.anchor={kind}", *flags, anchor=anchor)


VARIANTS: dict[str, Variant] = {
    "none": _of("none"),
    "stop_gradient": _of("stop_gradient"),
    "freeze": _of("freeze"),
    "lora": _of("lora"),
    "lora_null_space": _of("lora", "--policy.lora_null_space=true", anchor=OF_THE_VLM),
    "w2_penalty": _of("w2_penalty", anchor=OF_THE_VLM),
    "l2_sp": _of("l2_sp"),
    "decoupled_l2_sp": _of("decoupled_l2_sp"),
    "maps": _of("maps"),
    "ewc": _of("ewc", anchor="fisher"),
    "distill": _of("distill"),
    "replay": _of("replay"),
    "knowledge_insulation": _of("knowledge_insulation"),
    "aegis": _of("aegis", anchor=OF_THE_VLM),
    "gaussian": _aegis("gaussian"),
    "subspace": _aegis("subspace"),
    "subspace+gaussian": _aegis("subspace+gaussian"),
    **{f"subspace {share}": _aegis("subspace", f"--policy.anchor_share={share}") for share in SHARES},
    "gaussian of robot frames": _aegis("gaussian", anchor="robot"),
    "gaussian of both": _aegis("gaussian", anchor="both"),
    "subspace of robot frames": _aegis("subspace", anchor="robot"),
    "subspace of both": _aegis("subspace", anchor="both"),
}
