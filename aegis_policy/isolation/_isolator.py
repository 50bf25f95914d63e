"""The projector of the Gaussian anchor: takes the anchor gradient on the task's own graph, and projects the step.

Not here: how hidden states are kept (`_hidden_states`), how far they are from the anchor (`_anchor_distance`), and the
projection itself (`_projection`).

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aegis_policy.isolation._anchor_distance import AnchorDistance
from aegis_policy.isolation._anchor_gradients import AnchorGradients
from aegis_policy.isolation._gaussian import GaussianAnchor
from aegis_policy.isolation._hidden_states import HiddenStates
from aegis_policy.isolation._moments import EPS
from aegis_policy.isolation._numerics import unit_of
from aegis_policy.isolation._projection import LayerProjection, project_
from aegis_policy.isolation._projector import (
    PLACES,
    Descent,
    Projector,
    gradient_of,
    one_of,
)

GRANULARITIES = ("layer", "tensor", "all")
"""What one projection may be for."""


class GradientIsolator(Projector):
    """Holds what one optimizer step needs in order to keep a backbone's layers near their Gaussian anchor.

    A step is, in this order: `with collect(mask): forward`, `accumulate()`, the task's own backward,
    `project_()`, the optimizer's step, `clear()`. `ProjectedAdamW` does the last three. With gradient
    accumulation the first three repeat: task gradients add up as ever (of losses divided by the number of
    micro-batches, say), anchor gradients are averaged, each of its own micro-batch's moments.

    Under `torch.distributed` the moments are those of the global batch and anchor gradients are summed over
    ranks; task gradients must already be the same on all ranks (DDP averages them). Every rank must call
    `accumulate()` and `project_()` equally often, whatever its batch holds.

    Args:
        layers: the L modules whose outputs the anchor describes, in its order. A layer returns its hidden
            states (B, T, D), or a tuple that starts with them.
        anchor: of the same L layers; or one for each group of tokens, whose distances add up.
        parameters: for each layer the parameters to protect, by default all; then any further groups, of modules
            that the layers' hidden states depend on. Frozen ones are left out, and one shared by several
            groups belongs to the first.
        acts_on: the step to project, see `Projector`.
        granularity: what one projection is for: a `layer` (a group of `parameters`), a `tensor`, or `all` at once.
        whiten: divide each dimension's part of the distance by the anchor's variance there, so that the outlier
            dimensions of a residual stream do not decide alone.
        momentum: of an exponential moving average that takes the place of the batch's moments in the distance; its
            gradient is the batch's, as if the batch moved the average one to one.
        refresh_every: take the anchor gradient in one of so many steps and project against it until the next. A resumed
            run begins with a new one.
        restoring: add so much of the anchor gradient to the projected gradient, after any clipping.
        eps: inside the square root of the batch's standard deviation; the one that the anchor was made with.

    Raises:
        AnchorError: the anchor describes another number of layers.
        ValueError: no parameter to protect, or an option out of range.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        anchor: GaussianAnchor | Sequence[GaussianAnchor],
        parameters: Sequence[Sequence[nn.Parameter]] | None = None,
        *,
        acts_on: str = "gradient",
        granularity: str = "layer",
        whiten: bool = False,
        momentum: float = 0.0,
        refresh_every: int = 1,
        restoring: float = 0.0,
        eps: float = EPS,
    ) -> None:
        self.anchors = [anchor] if isinstance(anchor, GaussianAnchor) else list(anchor)
        for each in self.anchors:
            each.check(len(layers), self.anchors[0].hidden_size)
        if parameters is None:
            parameters = [list(layer.parameters()) for layer in layers]
        if len(parameters) < len(layers):
            raise ValueError(
                f"`parameters` has {len(parameters)} entries for {len(layers)} layers: give each layer one."
            )
        if not 0 <= momentum < 1 or refresh_every < 1 or restoring < 0:
            raise ValueError(
                f"momentum={momentum} must lie in [0, 1), refresh_every={refresh_every} be at least 1, "
                f"and restoring={restoring} at least 0."
            )
        self.acts_on = one_of("acts_on", acts_on, PLACES)
        if restoring and self.acts_on == "update":
            raise ValueError("restoring adds to the gradient, so it needs acts_on='gradient'.")
        self.layers = list(layers)
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.refresh_every = refresh_every
        self.restoring = restoring
        self.parameters = _trainable_once(parameters)
        if not any(self.parameters):
            raise ValueError(
                "No layer has a parameter that requires gradients, so there is nothing to protect: unfreeze one before."
            )
        self._masks: list[Tensor] = []
        self._hidden_states = HiddenStates(layers)
        self._anchor_distance = AnchorDistance(self.anchors, whiten=whiten, momentum=momentum, eps=eps)
        self._anchor_grads = AnchorGradients(self.parameters)
        self._projections_made = 0
        self._distance = 0.0
        self._projection: Tensor | None = None

    @property
    def protected(self) -> list[nn.Parameter]:
        return [p for group in self.parameters for p in group]

    @contextmanager
    def collect(self, *masks: Tensor) -> Iterator[None]:
        """Keep the output hidden states of every layer that runs inside the block.

        Args:
            masks: for each anchor a bool mask (B, T), True for a valid token that it describes.
        """
        if len(masks) != len(self.anchors):
            raise ValueError(f"There are {len(masks)} masks for {len(self.anchors)} anchors: give one each.")
        self._masks = [mask_BT.bool() for mask_BT in masks]
        with self._hidden_states.collect():
            yield

    def accumulate(self) -> float:
        """Add this batch's anchor gradient to the step's; the graph stays for the task's backward.

        The anchor loss is the squared W2 distance summed over layers. Its gradient with respect to the hidden
        states is known in closed form (`w2_cotangents`), so that one `torch.autograd.grad` from all layers at
        once is all the differentiation there is. Parameters' `.grad` are not touched.

        Returns:
            The anchor loss of the global batch, before this step. Reading it is the only wait for the device.

        Raises:
            RuntimeError: no or not all layers were collected, a layer ran without a graph, no gradient
                reached a layer: the step would be unprotected.
            ValueError: mask or anchor do not fit the hidden states, or the batch has no valid token.
        """
        hidden, masks = self._take_hidden()
        if self._anchor_grads.reduced:
            return self._distance
        distance = self._anchor_distance.of_batch(hidden, masks)
        with_graph = [
            (x, cotangent)
            for x, cotangent in zip(hidden, distance.cotangents, strict=True)
            if x.requires_grad
        ]
        self._anchor_grads.add(
            list(
                torch.autograd.grad(
                    [x for x, _ in with_graph],
                    self.protected,
                    [cotangent for _, cotangent in with_graph],
                    retain_graph=True,
                    allow_unused=True,  # an expert without tokens, say; add() refuses a layer without any gradient
                )
            )
        )
        self._distance, fewest = torch.stack([distance.value, distance.tokens]).tolist()
        if fewest == 0:
            raise ValueError(
                "A mask given to collect() has no valid token, so there are no moments to compare: leave the batch out."
            )
        return self._distance

    def prepare(self) -> None:
        """Sum the step's anchor gradients over ranks. A rank that accumulated nothing contributes zeros.

        Raises:
            RuntimeError: no rank accumulated an anchor gradient since the last `clear()`.
        """
        self._anchor_grads.reduce()

    @torch.no_grad()
    def project_(self, descent: Descent = gradient_of) -> None:
        """Project what `descent` gives for the parameters, group by group, after `prepare()`.

        A parameter that the task did not reach (`.grad` is None) is no part of the group's vector and stays
        as it is.

        Raises:
            RuntimeError: no rank accumulated an anchor gradient since the last `clear()`.
        """
        groups = [
            [
                (step, anchor_grad)
                for p, anchor_grad in zip(parameters, anchor_grads, strict=True)
                if (step := descent(p)) is not None
            ]
            for parameters, anchor_grads in zip(self.parameters, self._anchor_grads.reduce(), strict=True)
        ]
        self._projections_made += 1
        reached = [pair for group in groups for pair in group]
        if self.granularity == "tensor":
            groups = [[pair] for pair in reached]
        elif self.granularity == "all":
            groups = [reached]
        projections = [project_([g for g, _ in group], [a for _, a in group]) for group in groups if group]
        self._projection = _summarize(projections) if projections else None
        if self.restoring and reached:
            steps, anchor_grads = zip(*reached, strict=True)
            torch._foreach_add_(steps, anchor_grads, alpha=self.restoring)

    @torch.no_grad()
    def cosine(self, gradient: Callable[[nn.Parameter], Tensor | None]) -> Tensor:
        """Cosine between this rank's anchor gradient and another one, averaged over groups, a scalar.

        To be asked between `accumulate()` and `project_()`. Against the gradient of what is to be kept it says
        whether the anchor knows the direction of forgetting: both rise along it, so it should be positive.

        Args:
            gradient: of each protected parameter, or None where there is none.
        """
        cosines = []
        for parameters, anchor_grads in zip(self.parameters, self._anchor_grads.accumulated(), strict=True):
            pairs = [
                (other.flatten().to(anchor_grad), anchor_grad.flatten())
                for p, anchor_grad in zip(parameters, anchor_grads, strict=True)
                if (other := gradient(p)) is not None
            ]
            if pairs:
                others, own = (torch.cat(side) for side in zip(*pairs, strict=True))
                others, own = others / unit_of([others]), own / unit_of([own])
                cosines.append(torch.nn.functional.cosine_similarity(others, own, dim=0))
        if not cosines:
            raise ValueError(
                "The other gradient reaches none of the protected parameters: give one of a loss that depends on them."
            )
        return torch.stack(cosines).mean()

    def clear(self) -> None:
        """Forget the step's anchor gradients, unless the next step is to be projected against them too."""
        if 0 < self._projections_made < self.refresh_every and self._anchor_grads.reduced:
            return
        self._projections_made = 0
        self._anchor_grads.clear()

    def averages(self) -> dict[str, Tensor]:
        """The moving averages by name, for a checkpoint; they are updated in place."""
        return self._anchor_distance.averages()

    def noise_floor(self, samples: int) -> float | None:
        """The distance that `accumulate()` would return of a batch of so many of the anchors' own samples.

        None if an anchor does not know its noise. A moving average is quieter than one batch.
        """
        return self._anchor_distance.noise_floor(samples)

    def metrics(self) -> dict[str, float]:
        """Figures for a training log, zero before the first step; the keys never change.

        Returns:
            `anchor_distance`: the anchor loss at the last `accumulate()`. And of the last `project_()`:
            `conflict_fraction`: the share of layers (tensors, with that granularity) that were projected;
            `energy_shed`: the share of the step's squared norm over all of them that was taken away;
            `unprojected_layers`: how many of them had an anchor gradient that was zero or not finite.
        """
        conflict_fraction, energy_shed, unprojected = (
            (0.0, 0.0, 0.0) if self._projection is None else self._projection.tolist()
        )
        return {
            "anchor_distance": self._distance,
            "conflict_fraction": conflict_fraction,
            "energy_shed": energy_shed,
            "unprojected_layers": unprojected,
        }

    def _take_hidden(self) -> tuple[list[Tensor], list[Tensor]]:
        hidden = self._hidden_states.take()
        for index, parameters in enumerate(self.parameters[: len(self.layers)]):
            if parameters and not hidden[index].requires_grad:
                raise RuntimeError(
                    f"The hidden states of layer {index} need no gradient, so it would be unprotected: run "
                    "the forward pass with gradients enabled and, if checkpointed, with use_reentrant=False."
                )
        masks = [mask_BT.to(hidden[0].device) for mask_BT in self._masks]
        for index, x_BTD in enumerate(hidden):
            if any(x_BTD.shape != (*mask_BT.shape, self.anchors[0].hidden_size) for mask_BT in masks):
                raise ValueError(
                    f"The hidden states of layer {index} have shape {tuple(x_BTD.shape)}, which does not fit "
                    f"a mask of shape {tuple(masks[0].shape)} and an anchor of size {self.anchors[0].hidden_size}: "
                    "give collect() the mask of this batch, and the isolator the anchor of these layers."
                )
        return hidden, masks


def _trainable_once(parameters: Sequence[Sequence[nn.Parameter]]) -> list[list[nn.Parameter]]:
    """Leave out frozen parameters, and leave one that several layers share to the first of them."""
    owned: set[int] = set()
    layers: list[list[nn.Parameter]] = []
    for layer in parameters:
        unique = {id(p): p for p in layer if p.requires_grad and id(p) not in owned}
        owned |= unique.keys()
        layers.append(list(unique.values()))
    return layers


def _summarize(projections: Sequence[LayerProjection]) -> Tensor:
    """Conflict fraction, energy shed and unprojected layers as one tensor (3,), not yet read by the host."""
    conflict, usable, energy, shed = (torch.stack(column) for column in zip(*projections, strict=True))
    share = torch.nan_to_num(shed.sum() / energy.sum(), nan=0.0)
    return torch.stack([conflict.to(share).mean(), share, (~usable).to(share).sum()])
