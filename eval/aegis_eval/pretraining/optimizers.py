"""How the embedded VLM's parameters are moved, and how far at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


def build_optimizers(module: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon (arXiv 2502.16982) for the matrices inside the layers, AdamW for embeddings, heads and vectors.

    Muon's steps are scaled to the size of AdamW's, so that both take the same learning rate.
    """
    named = list(module.named_parameters())
    vectors = [parameter for _, parameter in named if parameter.ndim < 2]
    hidden = [parameter for name, parameter in named if parameter.ndim == 2 and "layers." in name]
    kept = {id(parameter) for parameter in (*vectors, *hidden)}
    matrices = [parameter for _, parameter in named if id(parameter) not in kept]
    groups = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98)),
    ]


@dataclass(frozen=True)
class Schedule:
    """Learning rates of `steps` steps: linear warm-up to `lr`, then cosine decay to 2 % of it."""

    lr: float
    warmup: int
    steps: int

    def set(self, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
        """Let the optimizers take step `step`, counted from 0."""
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * self._share(step)

    def _share(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
