"""What the action expert reads, and what must not change what it says."""

from itertools import pairwise

import pytest
import torch

from aegis_policy.model.expert import ActionExpert, read_layers, time_features


@pytest.fixture
def expert() -> ActionExpert:
    torch.manual_seed(0)
    expert = ActionExpert(
        action_dim=3, state_dim=5, horizon=4, backbone_dim=8, backbone_layers=3, width=16, depth=3, heads=2
    )
    for parameter in expert.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return expert.eval()


def _inputs(tokens: int = 6) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, tuple[torch.Tensor, ...]]:
    hidden = tuple(torch.randn(2, tokens, 8) for _ in range(3))
    mask = torch.ones(2, tokens, dtype=torch.bool)
    return hidden, mask, (torch.randn(2, 4, 3), torch.rand(2), torch.randn(2, 5))


@pytest.mark.parametrize(("blocks", "layers"), [(6, 4), (3, 4), (8, 26), (18, 18), (1, 5), (18, 26)])
def test_blocks_read_layers_evenly_and_end_at_the_last(blocks: int, layers: int) -> None:
    read = read_layers(blocks, layers)
    assert len(read) == blocks and read[-1] == layers - 1 and min(read) >= 0
    steps = [b - a for a, b in pairwise(read)]
    assert all(0 <= step <= -(-layers // blocks) for step in steps)


def test_a_fresh_expert_predicts_zero_velocity() -> None:
    expert = ActionExpert(3, 5, 4, 8, 3, width=16, depth=2, heads=2)
    hidden, mask, (x, time, state) = _inputs()
    assert not expert(x, time, state, expert.prepare_prefix(hidden, mask)).any()


def test_padding_of_the_prefix_changes_nothing(expert: ActionExpert) -> None:
    hidden, mask, inputs = _inputs()
    padded = tuple(torch.cat([h, torch.full((2, 3, 8), 1e4)], dim=1) for h in hidden)
    longer = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    without = expert(*inputs, expert.prepare_prefix(hidden, mask))
    with_padding = expert(*inputs, expert.prepare_prefix(padded, longer))
    torch.testing.assert_close(with_padding, without)


def test_one_time_for_all_samples_is_that_time_for_each(expert: ActionExpert) -> None:
    hidden, mask, (x, _, state) = _inputs()
    cache = expert.prepare_prefix(hidden, mask)
    each = expert(x, torch.full((2,), 0.3), state, cache)
    torch.testing.assert_close(expert(x, torch.full((1,), 0.3), state, cache), each)


@pytest.mark.parametrize("changed", ["prefix", "noise", "time", "state"])
def test_the_velocity_depends_on(expert: ActionExpert, changed: str) -> None:
    hidden, mask, (x, time, state) = _inputs()
    before = expert(x, time, state, expert.prepare_prefix(hidden, mask))
    if changed == "prefix":
        hidden = (*hidden[:-1], hidden[-1].flip(1) * torch.randn(8))
    elif changed == "noise":
        x = x + 1
    elif changed == "time":
        time = (time + 0.5) % 1
    else:
        state = state + 1
    after = expert(x, time, state, expert.prepare_prefix(hidden, mask))
    assert not torch.allclose(before, after, atol=1e-5)


def test_outlier_dimensions_of_the_residual_stream_keep_the_attention_finite(expert: ActionExpert) -> None:
    hidden, mask, inputs = _inputs()
    for layer in hidden:
        layer[..., 0] = 3e4
    assert expert(*inputs, expert.prepare_prefix(hidden, mask)).isfinite().all()


def test_time_features_tell_neighbouring_sampling_steps_apart() -> None:
    features = time_features(torch.arange(100) / 100)
    gaps = torch.cdist(features, features) + torch.eye(100) * 10
    assert gaps.min() > 1.0
