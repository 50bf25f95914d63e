"""AEGIS: projection against a static anchor of the pretrained activations."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from aegis_policy.isolation import Anchor, AnchorError
from aegis_policy.protections.action_tokens import ActionChunks
from aegis_policy.protections.anchor_kind import AnchorKind, Figures
from aegis_policy.protections.base import AnchorOptions, Protection, Step
from aegis_policy.protections.coverage import Coverage
from aegis_policy.protections.gaussian import Gaussian
from aegis_policy.protections.subspace import Subspace, SubspaceOptions
from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone
    from aegis_policy.vlm.parts import VLMParts

ANCHOR_KINDS: dict[str, type[AnchorKind]] = {kind.name: kind for kind in (Gaussian, Subspace)}
"""What `--policy.anchor` may name, and join by `+`."""


@dataclass
class AegisOptions(SubspaceOptions, AnchorOptions):
    """Options of `aegis`, besides those of its kinds of anchors.

    Attributes:
        anchor: what is protected: `subspace` (linear layers' outputs on their pretrained inputs), `gaussian` (the
            moments of every decoder layer's output, arXiv 2604.16067), or both joined by `+`.
    """

    anchor: str = "subspace"


class Aegis(Protection):
    """What the pretrained activations were like stays as it was: see `aegis_policy.isolation` for each anchor.

    One `AnchorKind` for each kind that `--policy.anchor` names; all projecting happens in the optimizer's step. What
    one of the kinds cannot guard does not learn. Figures in the log begin with the kind that they are about.

    Raises:
        AegisError: `--policy.anchor` names an unknown kind.
    """

    Options = AegisOptions
    chosen_by = ("protection", "anchor")
    needs_anchor = True
    projects = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        named = set(config.anchor.split("+"))
        if named - ANCHOR_KINDS.keys():
            raise AegisError(
                f"--policy.anchor={config.anchor} is unknown: choose of {', '.join(ANCHOR_KINDS)}, or join some with +."
            )
        self.kinds = tuple(ANCHOR_KINDS[name](config) for name in sorted(named))
        self.of_weights = all(kind.of_weights for kind in self.kinds)
        self.by_rows = all(kind.by_rows for kind in self.kinds)

    def defaults(self) -> dict[str, Any]:
        return {name: value for kind in self.kinds for name, value in kind.defaults.items()}

    def idle(self) -> dict[str, str]:
        present = {field.name for kind in self.kinds for field in fields(kind.Options)}
        known = {field.name for kind in ANCHOR_KINDS.values() for field in fields(kind.Options)}
        return dict.fromkeys(known - present, f"--policy.anchor={self.config.anchor}")

    def check_options(self) -> None:
        super().check_options()
        for name in self.defaults():
            if not 0 < (share := getattr(self.config, name)) <= 1:
                raise AegisError(f"--policy.{name}={share} must lie between 0 and 1.")

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        if not all(kind.held_by(anchor) for kind in self.kinds):
            raise AnchorError(
                f"The anchor does not hold what --policy.anchor={self.config.anchor} needs",
                f"rebuild it with aegis-anchor --kinds=[{','.join(kind.name for kind in self.kinds)}] and name it with "
                "--policy.anchor_path",
            )
        for kind in self.kinds:
            kind.check_anchor(anchor, vlm)

    def part_of(self, anchor: Anchor) -> Anchor:
        return anchor.part(**{name: value for kind in self.kinds for name, value in kind.part.items()})

    def narrow(self, vlm: "VLMParts") -> None:
        super().narrow(vlm)
        guarded = set.intersection(*({id(p) for p in kind.guarded(vlm)} for kind in self.kinds))
        for parameter in vlm.model.parameters():
            parameter.requires_grad_(parameter.requires_grad and id(parameter) in guarded)

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        assert anchor is not None
        for kind in self.kinds:
            kind.begin_training(vlm, anchor)
        self.projectors = tuple(kind.projector for kind in self.kinds)

    def coverages(self) -> Iterator[Coverage]:
        for kind in self.kinds:
            yield from kind.coverages()

    def begin_step(self, vlm: "VLMBackbone", inputs: dict[str, Tensor], chunks: ActionChunks) -> Step:
        with ExitStack() as stack:
            finishing = {kind.name: stack.enter_context(kind.watch(vlm, inputs)) for kind in self.kinds}
            prefix = vlm.encode(inputs)
        return _WatchedStep(prefix, finishing)

    def weight_figures(self) -> dict[str, float]:
        return _named({kind.name: kind.projector.metrics() for kind in self.kinds})

    def diagnose(self, vqa_loss: Callable[[], Tensor]) -> dict[str, float]:
        """Where the questions' own gradient lies: along the anchor gradient, inside the blocks."""
        parameters = list({id(p): p for each in self.projectors for p in each.protected}.values())
        with torch.enable_grad():
            gradients = torch.autograd.grad(vqa_loss(), parameters, allow_unused=True)
        gradient_of = {id(p): gradient for p, gradient in zip(parameters, gradients, strict=True)}
        return _named({kind.name: kind.diagnose(lambda p: gradient_of[id(p)]) for kind in self.kinds})


@dataclass(frozen=True)
class _WatchedStep(Step):
    """A step at whose encoding the kinds of anchors were watching."""

    finishing: dict[str, Callable[[], Figures]]

    def finish(self) -> dict[str, float]:
        return _named({kind: finish() for kind, finish in self.finishing.items()})


def _named(figures: Mapping[str, Figures]) -> dict[str, float]:
    """Figures of every kind under names that begin with it."""
    return {f"{kind}_{name}": value for kind, found in figures.items() for name, value in found.items()}
