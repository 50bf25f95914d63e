"""Low-rank adapters: the pretrained weights stay, and what is learned lives beside them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from aegis_policy.isolation import DEFAULT_SHARE, Anchor
from aegis_policy.protections.base import AnchorOptions, Protection
from aegis_policy.protections.coverage import Coverage
from aegis_policy.protections.subspace import HOLD_EVERY, SubspaceOptions, block_layers, require_factors
from aegis_policy.support.errors import AegisError

if TYPE_CHECKING:
    from aegis_policy.vlm.parts import VLMParts

_DOWN = ".lora_A.default"
"""How the name of an adapter's first matrix ends, after that of its layer."""


@dataclass
class LoraOptions(SubspaceOptions, AnchorOptions):
    """Options of `lora`.

    Attributes:
        lora_rank, lora_alpha: of the adapters, whose products are scaled by alpha / rank.
        lora_null_space: keep the adapters outside the leading input directions of their layers, `anchor_share` of them:
            needs an anchor.
    """

    lora_rank: int = 16
    lora_alpha: int = 32
    lora_null_space: bool = False


class Lora(Protection):
    """LoRA (arXiv 2106.09685) on every linear layer of the decoder, by peft; the adapters are part of the policy.

    With `lora_null_space` the first matrix A of every adapter B A starts and stays outside the leading directions u of
    its layer's pretrained inputs, A u = 0, so that the adapter does nothing to them (LoRA-Null, arXiv 2503.02659, where
    A may leave them in training). A tower or projector that trains is not held.
    """

    Options = LoraOptions
    chosen_by = ("protection", "lora_null_space")
    trains_decoder = False
    of_weights = True
    by_rows = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.needs_anchor = self.projects = config.lora_null_space

    def defaults(self) -> dict[str, Any]:
        return {"anchor_share": DEFAULT_SHARE} if self.config.lora_null_space else {}

    def idle(self) -> dict[str, str]:
        names = () if self.config.lora_null_space else ("anchor_share", "anchor_path")
        return dict.fromkeys(names, "--policy.lora_null_space=false")

    def check_options(self) -> None:
        super().check_options()
        share = self.config.anchor_share
        if self.config.lora_null_space and not (share is not None and 0 < share <= 1):
            raise AegisError(f"--policy.anchor_share={share} must lie between 0 and 1.")

    def check_anchor(self, anchor: Anchor, vlm: "VLMParts") -> None:
        require_factors(_first_matrices(vlm), self.part_of(anchor))

    def part_of(self, anchor: Anchor) -> Anchor:
        return anchor.part(factors=True)

    def adapt(self, vlm: "VLMParts") -> None:
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, for this protection alone

        layers = tuple(f"{vlm.family.decoder_layers}.{number}." for number in range(vlm.depth))
        adapters = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            target_modules=[name for name in vlm.linear_layers if name.startswith(layers)],
        )
        inject_adapter_in_model(adapters, vlm.model)
        for name, parameter in vlm.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()  # beside bfloat16 weights too

    def narrow(self, vlm: "VLMParts") -> None:
        super().narrow(vlm)
        for name, parameter in vlm.encoding_layers.named_parameters():
            parameter.requires_grad_("lora_" in name)

    def begin_training(
        self, vlm: "VLMParts", anchor: Anchor | None, reference: dict[str, Tensor] | None
    ) -> None:
        if anchor is None:
            return
        share = self.config.anchor_share
        assert share is not None, "resolved by ProtectionChoice"
        projector, self._coverage = block_layers(
            _first_matrices(vlm), anchor, share, "lora_null_space", HOLD_EVERY
        )
        projector.empty_()
        self.projectors = (projector,)

    def coverages(self) -> Iterator[Coverage]:
        if self.projectors:
            yield self._coverage


def _first_matrices(vlm: "VLMParts") -> dict[str, nn.Linear]:
    """The first matrix of every adapter, by the name of the layer that it is beside."""
    return {
        name.removesuffix(_DOWN): layer for name, layer in vlm.linear_layers.items() if name.endswith(_DOWN)
    }
