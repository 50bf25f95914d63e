"""Draws weights back towards the pretrained ones after each of the optimizer's steps, not by its gradient.

A penalty's gradient goes through the optimizer, whose preconditioner divides the pull on a weight by how large the
task's gradients of it are. What is done after the step is as strong for every weight.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from aegis_policy.isolation._projector import (
    GradientOf,
    Projector,
    RateOf,
    ValueOf,
    gradient_of,
    own_rate,
    whole_value,
)


class DecoupledDecay(Projector):
    """L2-SP as AdamW decays: W <- W - rate strength (W - W0), with the learning rate of the step.

    Args:
        pretrained: W0 of each parameter, on its device.
        strength: rate times strength is at most one.
    """

    def __init__(self, pretrained: Mapping[nn.Parameter, Tensor], strength: float) -> None:
        self._pretrained = dict(pretrained)
        self._strength = strength
        self._rates: dict[nn.Parameter, float] = {}

    @property
    def protected(self) -> list[nn.Parameter]:
        return list(self._pretrained)

    def prepare(self, rate: RateOf = own_rate) -> None:
        """Take in the rates of the step; parameters that it does not reach stay where they are."""
        self._rates = {p: rate(p) for p in self._pretrained if p.grad is not None}

    @torch.no_grad()
    def hold_(self, value: ValueOf = whole_value) -> None:
        """Draw back what the step has moved, once a step."""
        rates, self._rates = self._rates, {}
        for p, rate in rates.items():
            if (now := value(p)) is not None:
                now.lerp_(self._pretrained[p].to(now), min(rate * self._strength, 1.0))

    def clear(self) -> None:
        self._rates = {}

    def metrics(self) -> dict[str, float]:
        """Nothing: all weights are drawn alike."""
        return {}


class SelectiveProjectionDecay(Projector):
    """Draws a weight back in the steps alone in which it strays against its gradient (SPD, arXiv 2411.01713).

    Where the descent direction at W, before the step, leads back towards W0, <g, W - W0> > 0, and the step has led
    away all the same, as momentum can, W' = W + step becomes

        W' - strength max(0, (||W' - W0|| - ||W - W0||) / ||W' - W0||) (W' - W0)

    With a strength of one that is the sphere around W0 on which W was; with more it goes further, at most to W0.

    Args:
        pretrained: W0 of each parameter, on its device.
        strengths: of each parameter.
    """

    def __init__(
        self, pretrained: Mapping[nn.Parameter, Tensor], strengths: Mapping[nn.Parameter, float]
    ) -> None:
        self._pretrained = dict(pretrained)
        self._strengths = dict(strengths)
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._before: dict[nn.Parameter, _Before] = {}
        self._drawn_back = torch.zeros(())

    @property
    def protected(self) -> list[nn.Parameter]:
        return list(self._pretrained)

    def prepare(self, rate: RateOf = own_rate) -> None:
        """Pretrained weights are always at hand."""

    def project_(self, gradient: GradientOf = gradient_of) -> None:
        """Take in the gradients, which stay as they are."""
        found = {p: gradient(p) for p in self._pretrained}
        self._gradients = {p: each for p, each in found.items() if each is not None}

    @torch.no_grad()
    def remember(self, value: ValueOf = whole_value) -> None:
        """Take in how far the weights are from the pretrained ones, and whether their gradient leads back."""
        for p, gradient in self._gradients.items():
            if (now := value(p)) is not None:
                away = now - self._pretrained[p].to(now)
                self._before[p] = _Before(away.norm(), (gradient.to(now) * away).sum() > 0)
        self._gradients = {}

    @torch.no_grad()
    def hold_(self, value: ValueOf = whole_value) -> None:
        """Draw back what strayed in the step, once a step."""
        shares = []
        for p, before in self._before.items():
            if (now := value(p)) is not None:
                away = now - self._pretrained[p].to(now)
                norm = away.norm()
                share = ((norm - before.norm) / norm.clamp(min=torch.finfo(now.dtype).tiny)).clamp(0, 1)
                share = torch.where(before.leads_back, share, 0)
                now.sub_(away * (self._strengths[p] * share).clamp(max=1))
                shares.append(share)
        if shares:
            self._drawn_back = (torch.stack(shares) > 0).float().mean()
        self._before = {}

    def clear(self) -> None:
        self._gradients, self._before = {}, {}

    def metrics(self) -> dict[str, float]:
        """`drawn_back`: the share of the parameters that the last step drew back."""
        return {"drawn_back": float(self._drawn_back)}


class _Before(NamedTuple):
    """A weight before the step: how far away it is, and whether its gradient leads back; scalars."""

    norm: Tensor
    leads_back: Tensor
