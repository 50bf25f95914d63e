"""The same network in other numbers, as a test of what protects it: a rule that depends on the scale of single channels
protects something else of it.

What is multiplied on the way into a linear layer is divided out again in the columns that read it. One direction then
dominates the inputs of every layer, as it does in real language models.
"""

import torch
from torch import nn


@torch.no_grad()
def rescale_(decoder_layers: nn.ModuleList, factor: float = 100.0, channel: int = 0) -> None:
    """Multiply a channel of every norm's gain and of `up_proj` in a decoder, and divide the columns that read it.

    What the model computes stays what it was, up to rounding. An anchor of it has to be made anew.

    Args:
        decoder_layers: those of a Llama- or Gemma-like model, whose feed-forward part multiplies `up_proj`'s output.
        factor: of the channel.
        channel: which one, of hidden states and of the feed-forward part.
    """
    for layer in decoder_layers:
        attention, mlp = layer.self_attn, layer.mlp
        before_mlp = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
        read_by = {
            layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            before_mlp: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, readers in read_by.items():
            shift = 1.0 if "Gemma" in type(norm).__name__ else 0.0  # the gain of Gemma's norms is 1 + weight
            norm.weight[channel] = factor * (norm.weight[channel] + shift) - shift
            for reader in readers:
                reader.weight[:, channel] /= factor
        mlp.up_proj.weight[channel] *= factor
        mlp.down_proj.weight[:, channel] /= factor
