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
PENALTIES: dict[str, tuple[float, ...]] = {
    "w2_penalty": (2e-4, 2e-3, 0.02, 0.2),
    "l2_sp": (1e-3, 0.01, 0.1, 1),
    "decoupled_l2_sp": (1, 3, 10, 30, 100),
    "maps": (0.5, 1, 2, 4),
    "ewc": (1e-3, 0.01, 0.1, 1),
    "distill": (0.1, 1, 10, 100),
    "replay": (0.3, 1, 3),
    "knowledge_insulation": (0.3, 1, 3),
}
"""Strengths that protections are tried with."""
RANKS = (4, 16, 64)
"""Ranks of LoRA's adapters, whose alpha is twice that."""
WAITS = (100, 200, 400, 800)
"""Steps for which the expert learns alone."""
EPSILONS = (1e-7, 1e-6, 1e-5, 1e-4)
"""Of the backbone's AdamW."""
OF_THE_VLM = "vlm"
ANCHORS: dict[str, tuple[str, ...]] = {
    OF_THE_VLM: ("--vqa={vqa}", "--kinds=[gaussian,subspace]", f"--share={max(SHARES)}"),
    "fisher": ("--vqa={vqa}", "--kinds=[fisher]"),
    "robot": ("--vqa={data}", "--kinds=[gaussian,subspace]"),
    "both": ("--vqa={vqa}+{data}", "--kinds=[gaussian,subspace]"),
}
"""Anchors -> flags of `aegis-anchor`; `{vqa}` is what shows the VLM what it must not forget, `{data}` the
demonstrations trained on. `OF_THE_VLM` is the one that the embedded VLM brings and others do not."""


_ANCHOR_OF = {"w2_penalty": OF_THE_VLM, "ewc": "fisher"}
"""Protection that adds to the loss -> the anchor that it needs."""


def _of(protection: str, *flags: str, anchor: str | None = None) -> Variant:
    return Variant((f"--policy.protection={protection}", *flags), anchor)


def _aegis(kind: str, *flags: str, anchor: str = OF_THE_VLM) -> Variant:
    return _of("aegis", f"--policy.anchor={kind}", *flags, anchor=anchor)


def _adapted(rank: int) -> Variant:
    return _of("lora", f"--policy.lora_rank={rank}", f"--policy.lora_alpha={2 * rank}")


VARIANTS: dict[str, Variant] = {
    "none": _of("none"),
    "stop_gradient": _of("stop_gradient"),
    "freeze": _of("freeze"),
    "lora": _of("lora"),
    "lora_null_space": _of("lora", "--policy.lora_null_space=true", anchor=OF_THE_VLM),
    **{name: _of(name, anchor=_ANCHOR_OF.get(name)) for name in PENALTIES},
    "aegis": _of("aegis", anchor=OF_THE_VLM),
    "gaussian": _aegis("gaussian"),
    "subspace": _aegis("subspace"),
    "subspace+gaussian": _aegis("subspace+gaussian"),
    **{f"subspace {share}": _aegis("subspace", f"--policy.anchor_share={share}") for share in SHARES},
    "gaussian of robot frames": _aegis("gaussian", anchor="robot"),
    "gaussian of both": _aegis("gaussian", anchor="both"),
    "subspace of robot frames": _aegis("subspace", anchor="robot"),
    "subspace of both": _aegis("subspace", anchor="both"),
    **{
        f"{name} {strength:g}": _of(name, f"--policy.penalty={strength:g}", anchor=_ANCHOR_OF.get(name))
        for name, strengths in PENALTIES.items()
        for strength in strengths
    },
    **{f"lora rank {rank}": _adapted(rank) for rank in RANKS},
    **{f"none after {steps}": _of("none", f"--policy.expert_only_steps={steps}") for steps in WAITS},
    **{f"none eps {eps:g}": _of("none", f"--policy.optimizer_eps_backbone={eps:g}") for eps in EPSILONS},
}
