"""Gradient isolation: let a task's gradient into a pretrained backbone, but not against what it knew.

AEGIS (arXiv 2604.16067), in four steps.

1. **Anchor**, once. Run the pretrained model over data it must not forget. For every layer l keep mean mu0_l
   and standard deviation sigma0_l of its output hidden states, per hidden dimension, over all valid tokens
   (`MomentAccumulator`, `GaussianAnchor`).
2. **Distance**, each step, on the task's own batch and forward pass. With the batch's moments mu_l, sigma_l
   the squared Wasserstein-2 distance between diagonal Gaussians is

       W2^2_l = ||mu_l - mu0_l||^2 + ||sigma_l - sigma0_l||^2,        L_anchor = sum over l of W2^2_l

   (`global_moments`, `w2_squared`), and `GradientIsolator` takes its gradient g_anchor on the same graph.
3. **Projection**, one a layer. With all of a layer's parameters flattened into one vector and
   d = <g_task, g_anchor>,

       g = g_task - d / ||g_anchor||^2 g_anchor     if d < 0
       g = g_task                                   otherwise, bit for bit

   (`project_`). To first order, a plain gradient step with g no longer raises the distance. g_anchor itself is
   never added: it says where not to go, not where to go.
4. **Step** with g (`ProjectedAdamW`). Its rescaling and momentum can bring some of the conflict back.
   Groups of matrices with `muon=True` step by Muon (`MuonStep`).

One direction a layer leaves a model much freedom to forget. Another anchor blocks a **subspace** of every linear
layer's weight instead (GPM, arXiv 2103.09762; Adam-NSCL, arXiv 2103.07113): a share of the directions of the layer's
pretrained inputs, the leading ones, so that its outputs on them do not move. It acts on the weights after the
optimizer's step, which neither rescaling nor momentum can undo.

`DecoupledDecay` and `SelectiveProjectionDecay` are rivals that draw weights back to the pretrained ones after the step.

`FactorAccumulator` gathers sketches of the covariances in passes over the data not to be forgotten, `select_blocks`
takes a block of directions of each, and `LowRankProjector` holds the weights there in `ProjectedAdamW`. `Anchor` is the
one file that keeps what was gathered.

Nothing here knows about robots or language: any module will do whose layers you can name. On a plain model,
first the anchor of its outputs as they are now:

>>> import torch
>>> from torch import nn
>>> from aegis_policy.isolation import *
>>> _ = torch.manual_seed(0)
>>> layers, head = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)], nn.Linear(8, 2)
>>> model = nn.Sequential(*layers, head)
>>> x_BTD, mask_BT = torch.randn(4, 5, 8), torch.ones(4, 5, dtype=torch.bool)
>>> moments = [MomentAccumulator() for _ in layers]
>>> for depth, each in enumerate(moments, start=1):
...     each.update(model[:depth](x_BTD), mask_BT)
>>> anchor = GaussianAnchor.from_accumulators(moments)

then ten lines of protected training:

>>> isolator = GradientIsolator(layers, anchor)
>>> optimizer = ProjectedAdamW(model.parameters(), isolator, lr=1e-2)
>>> for _ in range(20):
...     with isolator.collect(mask_BT):
...         loss = (model(x_BTD) - 1).square().mean()
...     distance = isolator.accumulate()  # the anchor gradient, on the graph of the forward pass
...     loss.backward()  # the task gradient
...     optimizer.step()  # projects one against the other, then steps
...     optimizer.zero_grad()
>>> sorted(isolator.metrics())
['anchor_distance', 'conflict_fraction', 'energy_shed', 'unprojected_layers']

or, with blocks instead of one direction: a pass for the directions of the inputs, then training without a second
gradient:

>>> linears = {str(depth): layer[0] for depth, layer in enumerate(layers)}
>>> accumulator = FactorAccumulator(linears, share=0.5)
>>> with torch.no_grad(), accumulator.collect():
...     _ = model(x_BTD)
>>> blocks = select_blocks(accumulator.factors(), share=0.5)
>>> optimizer = ProjectedAdamW(model.parameters(), LowRankProjector(linears, blocks), lr=1e-2)
>>> for _ in range(20):
...     optimizer.zero_grad()
...     (model(x_BTD) - 1).square().mean().backward()
...     optimizer.step()  # steps, then puts what is blocked back
"""

from aegis_policy.isolation._anchor import Anchor
from aegis_policy.isolation._blocks import select_blocks
from aegis_policy.isolation._factors import (
    DEFAULT_SHARE,
    FactorAccumulator,
    LinearFactors,
    direction_count,
)
from aegis_policy.isolation._fisher import FISHER_EXACT, fisher_cotangents
from aegis_policy.isolation._gaussian import AnchorError, GaussianAnchor, w2_cotangents, w2_squared
from aegis_policy.isolation._isolator import GradientIsolator
from aegis_policy.isolation._low_rank import LowRankProjector
from aegis_policy.isolation._moment_accumulators import MomentAccumulator, NoiseAccumulator
from aegis_policy.isolation._moments import EPS, Moments, global_moments, masked_moments
from aegis_policy.isolation._muon import MuonStep
from aegis_policy.isolation._optimizer import ProjectedAdamW, ProjectedStep
from aegis_policy.isolation._penalties import distance_penalty, weight_penalty
from aegis_policy.isolation._projection import LayerProjection, project_
from aegis_policy.isolation._projector import Projector
from aegis_policy.isolation._proximity import DecoupledDecay, SelectiveProjectionDecay
from aegis_policy.isolation._rows import EveryRow, thinned
from aegis_policy.isolation._sketch import CovarianceSketch, Spectrum

__all__ = [
    "DEFAULT_SHARE",
    "EPS",
    "FISHER_EXACT",
    "Anchor",
    "AnchorError",
    "CovarianceSketch",
    "DecoupledDecay",
    "EveryRow",
    "FactorAccumulator",
    "GaussianAnchor",
    "GradientIsolator",
    "LayerProjection",
    "LinearFactors",
    "LowRankProjector",
    "MomentAccumulator",
    "Moments",
    "MuonStep",
    "NoiseAccumulator",
    "ProjectedAdamW",
    "ProjectedStep",
    "Projector",
    "SelectiveProjectionDecay",
    "Spectrum",
    "direction_count",
    "distance_penalty",
    "fisher_cotangents",
    "global_moments",
    "masked_moments",
    "project_",
    "select_blocks",
    "thinned",
    "w2_cotangents",
    "w2_squared",
    "weight_penalty",
]
