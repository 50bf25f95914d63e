"""What `aegis-ablate` can compare: each variant is a name, the flags it adds to `lerobot-train`, and its anchor."""

from dataclasses import dataclass

from aegis_policy.protections import PROTECTIONS
from aegis_policy.vlm.loading import EMBEDDED_VLM


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        flags: added to the training command.
        anchor: name in `ANCHORS` of the anchor it needs, unless it needs none or the one that the embedded VLM brings.
        question: what the comparison with its neighbours answers; variants of the same question share a table.
    """

    flags: tuple[str, ...]
    question: str
    anchor: str | None = None

    def anchor_for(self, vlm: str) -> str | None:
        """Name in `ANCHORS` of the anchor that has to be made before it trains on a VLM."""
        protection = self.flags[0].removeprefix("--policy.protection=")
        brought = self.anchor is None and PROTECTIONS[protection].needs_anchor
        return OF_THE_VLM if brought and vlm != EMBEDDED_VLM else self.anchor


OF_THE_VLM = "vlm"
ANCHORS: dict[str, tuple[str, ...]] = {
    OF_THE_VLM: ("--vqa=tabletop",),
    "fisher": ("--vqa=tabletop", "--kinds=[fisher]"),
    "robot": ("--vqa={data}", "--kinds=[gaussian,subspace]"),
    "both": ("--vqa=tabletop+{data}",),
}
"""Anchors -> flags of `aegis-anchor`; `{data}` is the demonstrations trained on. `OF_THE_VLM` stands in for the one
that the embedded VLM brings and others do not."""


def _plain(protection: str, *flags: str, anchor: str | None = None) -> Variant:
    return Variant((f"--policy.protection={protection}", *flags), "protections", anchor)


def _aegis(question: str, anchor: str, *flags: str, file: str | None = None) -> Variant:
    return Variant(("--policy.protection=aegis", f"--policy.anchor={anchor}", *flags), question, file)


VARIANTS: dict[str, Variant] = {
    "none": _plain("none"),
    "stop_gradient": _plain("stop_gradient"),
    "freeze": _plain("freeze"),
    "lora": _plain("lora"),
    "w2_penalty": _plain("w2_penalty"),
    "l2_sp": _plain("l2_sp"),
    "ewc": _plain("ewc", anchor="fisher"),
    "replay": _plain("replay"),
    "knowledge_insulation": _plain("knowledge_insulation"),
    "aegis": _plain("aegis"),
    "gaussian": _aegis("protections", "gaussian"),
    "subspace": _aegis("protections", "subspace"),
    "kronecker": _aegis("protections", "kronecker"),
    "subspace+gaussian": _aegis("protections", "subspace+gaussian"),
    "subspace+kronecker": _aegis("protections", "subspace+kronecker"),
    **{
        f"kronecker {energy}": _aegis(
            "how much of the Fisher weight to block", "kronecker", f"--policy.anchor_energy={energy}"
        )
        for energy in (0.8, 0.9, 0.98)
    },
    **{
        f"subspace {energy}": _aegis(
            "how much of the input energy to block", "subspace", f"--policy.anchor_energy={energy}"
        )
        for energy in (0.7, 0.8, 0.95)
    },
    "kronecker soft": _aegis("hard or soft", "kronecker", "--policy.anchor_soft=true"),
    "subspace soft": _aegis("hard or soft", "subspace", "--policy.anchor_soft=true"),
    "subspace on gradient": _aegis("where the projection acts", "subspace", "--policy.project=gradient"),
    "gaussian on update": _aegis("where the projection acts", "gaussian", "--policy.project=update"),
    "kronecker by layer": _aegis("granularity", "kronecker", "--policy.granularity=layer"),
    "subspace over all": _aegis("granularity", "subspace", "--policy.granularity=all"),
    "gaussian by tensor": _aegis("granularity", "gaussian", "--policy.granularity=tensor"),
    "gaussian over all": _aegis("granularity", "gaussian", "--policy.granularity=all"),
    "gaussian of robot frames": _aegis("anchor domain", "gaussian", file="robot"),
    "gaussian of both": _aegis("anchor domain", "gaussian", file="both"),
    "subspace of robot frames": _aegis("anchor domain", "subspace", file="robot"),
    "subspace of both": _aegis("anchor domain", "subspace", file="both"),
    "gaussian tokens apart": _aegis("image and text tokens", "gaussian", "--policy.anchor_tokens=apart"),
    "gaussian whitened": _aegis("options of the Gaussian anchor", "gaussian", "--policy.anchor_whiten=true"),
    "gaussian averaged": _aegis("options of the Gaussian anchor", "gaussian", "--policy.anchor_momentum=0.9"),
    "gaussian every 4th": _aegis("options of the Gaussian anchor", "gaussian", "--policy.anchor_refresh=4"),
    "gaussian restoring": _aegis(
        "options of the Gaussian anchor", "gaussian", "--policy.anchor_restoring=0.001"
    ),
    "gaussian at its best": _aegis(
        "options of the Gaussian anchor",
        "gaussian",
        "--policy.project=update",
        "--policy.anchor_whiten=true",
        file="robot",
    ),
}
