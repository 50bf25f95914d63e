"""The action expert: a flow-matching transformer that reads the backbone layer by layer.

Its tokens are the H steps of a noisy action chunk and one token for the proprioceptive state. Every block
attends to itself, then to the hidden states of one backbone layer, then applies an MLP; each of the three
is modulated by the flow time through zero-initialised adaptive layer norm (DiT, arXiv 2212.09748), of which
all blocks share the projection and each has its own offset (PixArt-alpha, arXiv 2310.00426). The blocks'
layers are evenly spaced over the backbone and end at its last one, so the flow loss reaches every layer
below.

Shapes: B batch, T prefix tokens, D backbone hidden size, H action horizon, A action dimension, S state
dimension, W expert width, N expert tokens (H + 1), K attention heads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TIME_FREQUENCIES = 64
_MAX_PERIOD = 4.0
_MIN_PERIOD = 4e-3


@dataclass(frozen=True)
class PrefixCache:
    """Each block's keys and values (B, K, T, W/K) of one encoded prefix, and its mask (B, 1, 1, T)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor


def read_layers(num_blocks: int, num_layers: int) -> list[int]:
    """The backbone layer each block reads: evenly spaced, rising, the last block reads the last layer."""
    return [math.ceil((block + 1) * num_layers / num_blocks) - 1 for block in range(num_blocks)]


class ActionExpert(nn.Module):
    """Predicts a chunk's flow velocity from the backbone's hidden states and the robot's state.

    Args:
        action_dim, state_dim, horizon: A, S and H.
        backbone_dim, backbone_layers: D and the number of decoder layers.
        width, depth, heads: W, number of blocks, K. W must be a multiple of K.
    """

    def __init__(
        self,
        action_dim: int,
        state_dim: int,
        horizon: int,
        backbone_dim: int,
        backbone_layers: int,
        width: int,
        depth: int,
        heads: int,
    ) -> None:
        super().__init__()
        self.horizon = horizon
        self.layers_read = read_layers(depth, backbone_layers)
        self.embed_action = nn.Linear(action_dim, width)
        self.embed_state = nn.Linear(state_dim, width)
        self.positions = nn.Parameter(torch.randn(horizon + 1, width) * 0.02)
        self.embed_time = nn.Sequential(
            nn.Linear(2 * _TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.modulation = _zero_linear(width, 9 * width)
        self.readers = nn.ModuleList(PrefixReader(backbone_dim, width, heads) for _ in range(depth))
        self.blocks = nn.ModuleList(ExpertBlock(width, heads) for _ in range(depth))
        self.final_modulation = _zero_linear(width, 2 * width)
        self.to_velocity = _zero_linear(width, action_dim)

    def hidden_matrices(self) -> list[Tensor]:
        """The weights of its readers' and blocks' linear layers: what Muon is for."""
        return [
            layer.weight
            for part in (self.readers, self.blocks)
            for layer in part.modules()
            if isinstance(layer, nn.Linear)
        ]

    def prepare_prefix(self, hidden_states: Sequence[Tensor], mask_BT: Tensor) -> PrefixCache:
        """Project the backbone's layers (each (B, T, D)) to keys and values, once for all sampling steps."""
        pairs = [
            reader(hidden_states[layer]) for reader, layer in zip(self.readers, self.layers_read, strict=True)
        ]
        keys, values = zip(*pairs, strict=True)
        return PrefixCache(keys, values, mask_BT[:, None, None, :])

    def forward(self, x_BHA: Tensor, time_B: Tensor, state_BS: Tensor, cache: PrefixCache) -> Tensor:
        """Velocity (B, H, A) at the noisy chunk `x_BHA` and flow time `time_B`, which may be (1,) for all.

        B may be a multiple of the cache's batch: the cached batch over and over, each prefix read several times.
        """
        tokens_BNW = torch.cat([self.embed_action(x_BHA), self.embed_state(state_BS)[:, None]], dim=1)
        tokens_BNW = tokens_BNW + self.positions
        time_BW = self.embed_time(time_features(time_B).to(tokens_BNW.dtype))
        modulation_B9W = self.modulation(time_BW).unflatten(-1, (9, -1))
        for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
            tokens_BNW = block(tokens_BNW, modulation_B9W, keys, values, cache.mask)
        shift_B1W, scale_B1W = self.final_modulation(time_BW)[:, None].chunk(2, dim=-1)
        actions_BHW = _modulated_norm(tokens_BNW[:, : self.horizon], shift_B1W, scale_B1W)
        return self.to_velocity(actions_BHW)


class ExpertBlock(nn.Module):
    """Self-attention, cross-attention to one backbone layer, MLP; each with its own shift, scale and gate."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Parameter(torch.zeros(9, width))
        self.to_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.to_query = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(
        self, tokens_BNW: Tensor, modulation_B9W: Tensor, keys: Tensor, values: Tensor, mask: Tensor
    ) -> Tensor:
        parts = (modulation_B9W + self.modulation)[:, :, None].unbind(dim=1)
        shift1, scale1, gate1, shift2, scale2, gate2, shift3, scale3, gate3 = parts
        normed = _modulated_norm(tokens_BNW, shift1, scale1)
        q, k, v = (_split_heads(part, self.heads) for part in self.to_qkv(normed).chunk(3, dim=-1))
        attended = _merge_heads(F.scaled_dot_product_attention(q, k, v))
        tokens_BNW = tokens_BNW + gate1 * self.self_out(attended)

        q = _split_heads(self.to_query(_modulated_norm(tokens_BNW, shift2, scale2)), self.heads)
        attended = _merge_heads(_read_prefix(q, keys, values, mask))
        tokens_BNW = tokens_BNW + gate2 * self.cross_out(attended)

        return tokens_BNW + gate3 * self.mlp(_modulated_norm(tokens_BNW, shift3, scale3))


def _read_prefix(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of `q` (F B, K, N, W/K) to the keys and values of B prefixes, which are not copied F times."""
    flow_samples, tokens = len(q) // len(keys), q.shape[2]
    q = q.unflatten(0, (flow_samples, -1)).movedim(0, 2).flatten(2, 3)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
    return attended.unflatten(2, (flow_samples, tokens)).movedim(2, 0).flatten(0, 1)


class PrefixReader(nn.Module):
    """Keys and values of one backbone layer.

    A residual stream has a few dimensions hundreds of times larger than the rest, and grows with depth: it is
    normalised before it is projected.
    """

    def __init__(self, backbone_dim: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(backbone_dim)
        self.to_key_value = nn.Linear(backbone_dim, 2 * width)

    def forward(self, hidden_BTD: Tensor) -> tuple[Tensor, Tensor]:
        normed_BTD = self.norm(hidden_BTD.to(self.norm.weight.dtype))
        key_BTW, value_BTW = self.to_key_value(normed_BTD).chunk(2, dim=-1)
        return _split_heads(key_BTW, self.heads), _split_heads(value_BTW, self.heads)


def time_features(time_B: Tensor) -> Tensor:
    """Sines and cosines (B, 128) of the flow time, with periods from 4e-3 to 4 (as pi0, arXiv 2410.24164)."""
    exponents = torch.linspace(0.0, 1.0, _TIME_FREQUENCIES, device=time_B.device)
    periods = _MIN_PERIOD * (_MAX_PERIOD / _MIN_PERIOD) ** exponents
    angles = 2 * math.pi * time_B.float()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _split_heads(x_BNW: Tensor, heads: int) -> Tensor:
    return x_BNW.unflatten(-1, (heads, -1)).transpose(1, 2)


def _merge_heads(x_BKNE: Tensor) -> Tensor:
    return x_BKNE.transpose(1, 2).flatten(2)


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
