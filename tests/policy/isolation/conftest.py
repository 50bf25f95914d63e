"""A small residual backbone with padding, used by the isolation tests."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from aegis_policy.isolation import GaussianAnchor

L, B, T, D = 3, 4, 6, 8


class ResidualBlock(nn.Module):
    """A pre-norm residual block that returns a tuple, as many decoder layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D, bias=False)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor]:
        return (x_BTD + self.down(nn.functional.gelu(self.up(self.norm(x_BTD)))),)


class CheckpointedBlock(ResidualBlock):
    """Checkpoints the whole call, hooks included, as transformers' checkpointed layers do."""

    use_reentrant = False

    def __call__(self, x_BTD: Tensor) -> tuple[Tensor]:
        return checkpoint(super().__call__, x_BTD, use_reentrant=self.use_reentrant)


class Backbone(nn.Module):
    def __init__(self, block: Callable[[], ResidualBlock] = ResidualBlock) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block() for _ in range(L))
        self.head = nn.Linear(D, 2)

    def forward(self, x_BTD: Tensor) -> Tensor:
        for layer in self.layers:
            (x_BTD,) = layer(x_BTD)
        return self.head(x_BTD)


@dataclass
class Setting:
    """A backbone, one batch with ragged padding and an anchor that the batch is away from."""

    model: Backbone
    x_BTD: Tensor
    mask_BT: Tensor
    anchor: GaussianAnchor

    def task_loss(self) -> Tensor:
        return (self.model(self.x_BTD)[self.mask_BT] - 1).square().mean()


@pytest.fixture
def make_setting() -> Callable[..., Setting]:
    def make(block: Callable[[], ResidualBlock] = ResidualBlock, seed: int = 0) -> Setting:
        torch.manual_seed(seed)
        model = Backbone(block)
        lengths_B = torch.tensor([T, 2, 4, 1])
        mask_BT = torch.arange(T) < lengths_B[:, None]
        anchor = GaussianAnchor(torch.randn(L, D), torch.rand(L, D) + 0.5, count=100)
        return Setting(model, torch.randn(B, T, D), mask_BT, anchor)

    return make


@pytest.fixture
def setting(make_setting: Callable[..., Setting]) -> Setting:
    return make_setting()


@pytest.fixture
def checkpointed_block() -> type[CheckpointedBlock]:
    return CheckpointedBlock
