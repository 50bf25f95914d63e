"""Low-rank adapters: the pretrained weights stay, and what is learned lives beside them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aegis_policy.protections.base import Protection

if TYPE_CHECKING:
    from aegis_policy.vlm.backbone import VLMBackbone


@dataclass
class LoraOptions:
    """Options of `lora`.

    Attributes:
        lora_rank, lora_alpha: of the adapters, whose products are scaled by alpha / rank.
    """

    lora_rank: int = 16
    lora_alpha: int = 32


class Lora(Protection):
    """LoRA (arXiv 2106.09685) on every linear layer of the decoder, by peft; the adapters are part of the policy."""

    Options = LoraOptions
    trains_decoder = False

    def adapt(self, vlm: "VLMBackbone") -> None:
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, for this protection alone

        prefix = f"{vlm.family.decoder_layers}."
        adapters = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=self.config.lora_alpha,
            target_modules=[name for name in vlm.linear_layers if name.startswith(prefix)],
        )
        inject_adapter_in_model(adapters, vlm.model)

    def set_trainable(self, vlm: "VLMBackbone") -> None:
        super().set_trainable(vlm)
        for name, parameter in vlm.decoder_layers.named_parameters():
            parameter.requires_grad_("lora_" in name)
