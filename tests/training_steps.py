"""What tests of policies share: an optimizer as `lerobot-train` builds it, and one step as it takes it."""

from collections.abc import Callable
from typing import Any

import torch

from aegis_policy.modeling_aegis import AegisPolicy

MakePolicy = Callable[..., AegisPolicy]
MakeBatch = Callable[..., dict[str, Any]]


def build_optimizer(policy: AegisPolicy) -> torch.optim.Optimizer:
    return policy.config.get_optimizer_preset().build(policy.get_optim_params())


def training_step(
    policy: AegisPolicy, optimizer: torch.optim.Optimizer, batch: dict[str, Any]
) -> dict[str, float]:
    """Returns what would be logged."""
    loss, figures = policy.train()(batch)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return figures


def train(policy: AegisPolicy, make_batch: MakeBatch, steps: int) -> list[dict[str, float]]:
    """Train on three batches over and over, with draws of their own each step; returns what would be logged."""
    optimizer = build_optimizer(policy)
    log = []
    for step in range(steps):
        torch.manual_seed(step)
        log.append(training_step(policy, optimizer, make_batch(seed=step % 3)))
    return log
