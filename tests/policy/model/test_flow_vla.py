"""The model alone, between a VLM and an expert that are known functions."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from aegis_policy.model.flow_vla import FlowVLA, draw
from aegis_policy.vlm.prefix import Prefix

B, F, H, A, S = 3, 2, 4, 2, 5


class _Expert:
    """Its velocity is x + time + the state's sum + the prefix's first number, so that a mixed-up sample shows."""

    def __init__(self) -> None:
        self.prepared = 0

    def prepare_prefix(self, hidden_states: tuple[Tensor, ...], mask_BT: Tensor) -> Tensor:
        self.prepared += 1
        return hidden_states[-1][:, 0, 0]

    def __call__(self, x_NHA: Tensor, time_N: Tensor, state_NS: Tensor, cache_B: Tensor) -> Tensor:
        offset_N = state_NS.sum(-1) + cache_B.repeat(len(x_NHA) // len(cache_B)) + time_N
        return x_NHA + offset_N[:, None, None]


def _model() -> tuple[FlowVLA, Any]:
    torch.manual_seed(0)
    prefix = Prefix((torch.randn(B, 6, 8),), torch.ones(B, 6, dtype=torch.bool))
    vlm: Any = SimpleNamespace(encode=lambda inputs: prefix)
    expert: Any = _Expert()
    return FlowVLA(vlm, expert), prefix


def test_losses_average_over_samples_of_the_path_and_valid_steps() -> None:
    model, prefix = _model()
    state_BS, actions_BHA = torch.randn(B, S), torch.randn(B, H, A)
    noise_NHA, time_N = torch.randn(F * B, H, A), torch.rand(F * B)
    is_pad_BH = torch.zeros(B, H, dtype=torch.bool)
    is_pad_BH[1, 1:] = True
    loss_B = model.losses(prefix, state_BS, actions_BHA, is_pad_BH, noise_NHA, time_N, across_ranks=False)
    expected_B = torch.zeros(B, dtype=torch.float64)
    for sample in range(F * B):
        row = sample % B
        time, noise, actions = time_N[sample].double(), noise_NHA[sample].double(), actions_BHA[row].double()
        x_HA = (1 - time) * noise + time * actions
        velocity_HA = x_HA + time + state_BS[row].double().sum() + prefix.hidden_states[0][row, 0, 0].double()
        error_H = (velocity_HA - (actions - noise)).square().mean(-1)
        expected_B[row] += error_H[~is_pad_BH[row]].sum() / F
    expected_B /= float((~is_pad_BH).sum()) / B
    torch.testing.assert_close(loss_B.double(), expected_B, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_integrated_from_one_encoding() -> None:
    model, prefix = _model()
    encoded: list[Any] = []
    counting: Any = SimpleNamespace(encode=lambda inputs: encoded.append(inputs) or prefix)
    expert: Any = model.expert
    state_BS, noise_BHA = torch.randn(B, S), torch.randn(B, H, A)
    chunk_BHA = FlowVLA(counting, expert).sample({"input_ids": torch.zeros(1)}, state_BS, noise_BHA, 5)
    x_BHA = noise_BHA.double()
    for step in range(5):
        offset_B = state_BS.double().sum(-1) + prefix.hidden_states[0][:, 0, 0].double() + step / 5
        x_BHA = x_BHA + (x_BHA + offset_B[:, None, None]) / 5
    torch.testing.assert_close(chunk_BHA.double(), x_BHA, rtol=1e-5, atol=1e-5)
    assert chunk_BHA.dtype == torch.float32 and len(encoded) == expert.prepared == 1


def test_rounds_are_drawn_one_after_the_other() -> None:
    like = torch.zeros(B, 1)
    torch.manual_seed(3)
    drawn = draw(lambda rows: torch.randn(rows, 2), like, rounds=2)
    torch.manual_seed(3)
    first = draw(lambda rows: torch.randn(rows, 2), like, rounds=1)
    assert drawn.shape == (2 * B, 2) and torch.equal(drawn[:B], first)
    assert not torch.equal(drawn[:B], drawn[B:])
