"""The projector of the Gaussian anchor: takes the anchor gradient on the task's own graph, and projects the task's.

Not here: how hidden states are kept (`_hidden_states`), how far they are from the anchor (`_gaussian`), and the
projection itself (`_projection`).

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from aegis_policy.isolation._anchor_gradients import AnchorGradients
from aegis_policy.isolation._gaussian import GaussianAnchor, w2_cotangents, w2_squared
from aegis_policy.isolation._hidden_states import HiddenStates
from aegis_policy.isolation._moments import EPS, global_moments
from aegis_policy.isolation._numerics import unit_of
from aegis_policy.isolation._projection import LayerProjection, project_
from aegis_policy.isolation._projector import GradientOf, Projector, RateOf, gradient_of, own_rate


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
        anchor: of the same L layers.
        parameters: for each layer the parameters to protect, by default all; then any further groups, of modules
            that the layers' hidden states depend on. Frozen ones are left out, and one shared by several
            groups belongs to the first.
        eps: inside the square root of the batch's standard deviation; the one that the anchor was made with.

    Raises:
        AnchorError: the anchor describes another number of layers.
        ValueError: no parameter to protect.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        anchor: GaussianAnchor,
        parameters: Sequence[Sequence[nn.Parameter]] | None = None,
        *,
        eps: float = EPS,
    ) -> None:
        anchor.check(len(layers), anchor.hidden_size)
        self.anchor = anchor
        if parameters is None:
            parameters = [list(layer.parameters()) for layer in layers]
        if len(parameters) < len(layers):
            raise ValueError(
                f"`parameters` has {len(parameters)} entries for {len(layers)} layers: give each layer one."
            )
        self.layers = list(layers)
        self.eps = eps
        self.parameters = _trainable_once(parameters)
        if not any(self.parameters):
            raise ValueError(
                "No layer has a parameter that requires gradients, so there is nothing to protect: unfreeze one before."
            )
        self._moments0: tuple[Tensor, ...] = (anchor.mean_LD, anchor.std_LD)
        self._mask_BT = torch.zeros(0, 0, dtype=torch.bool)
        self._hidden_states = HiddenStates(layers)
        self._anchor_grads = AnchorGradients(self.parameters)
        self._distance = 0.0
        self._projection: Tensor | None = None

    @property
    def protected(self) -> list[nn.Parameter]:
        return [p for group in self.parameters for p in group]

    @contextmanager
    def collect(self, mask_BT: Tensor) -> Iterator[None]:
        """Keep the output hidden states of every layer that runs inside the block.

        Args:
            mask_BT: bool, True for a valid token.
        """
        self._mask_BT = mask_BT.bool()
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
        hidden, mask_BT = self._take_hidden()
        if self._anchor_grads.reduced:  # and used: the next step begins
            self._anchor_grads.clear()
        moments = global_moments(hidden, mask_BT, self.eps)
        mean0_LD, std0_LD = self._moments0 = tuple(x_LD.to(moments.mean_LD) for x_LD in self._moments0)
        distance = w2_squared(moments.mean_LD, moments.std_LD, mean0_LD, std0_LD)
        cotangents = w2_cotangents(hidden, mask_BT, moments, mean0_LD, std0_LD)
        with_graph = [
            (x, cotangent) for x, cotangent in zip(hidden, cotangents, strict=True) if x.requires_grad
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
        self._distance, tokens = torch.stack([distance, moments.tokens.to(distance)]).tolist()
        if tokens == 0:
            raise ValueError(
                "The mask given to collect() has no valid token, so there are no moments to compare: leave the batch "
                "out."
            )
        return self._distance

    def prepare(self, rate: RateOf = own_rate) -> None:
        """Sum the step's anchor gradients over ranks. A rank that accumulated nothing contributes zeros.

        Raises:
            RuntimeError: no rank accumulated an anchor gradient since the last `clear()`.
        """
        self._anchor_grads.reduce()

    @torch.no_grad()
    def project_(self, gradient: GradientOf = gradient_of) -> None:
        """Project what `gradient` gives for the parameters, group by group, after `prepare()`.

        A parameter that the task did not reach (`.grad` is None) is no part of the group's vector and stays
        as it is.

        Raises:
            RuntimeError: no rank accumulated an anchor gradient since the last `clear()`.
        """
        groups = [
            [
                (step, anchor_grad)
                for p, anchor_grad in zip(parameters, anchor_grads, strict=True)
                if (step := gradient(p)) is not None
            ]
            for parameters, anchor_grads in zip(self.parameters, self._anchor_grads.reduce(), strict=True)
        ]
        projections = [project_([g for g, _ in group], [a for _, a in group]) for group in groups if group]
        self._projection = _summarize(projections) if projections else None

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
        """Forget the step's anchor gradients."""
        self._anchor_grads.clear()

    def metrics(self) -> dict[str, float]:
        """Figures for a training log, zero before the first step; the keys never change.

        Returns:
            `anchor_distance`: the anchor loss at the last `accumulate()`. And of the last `project_()`:
            `conflict_fraction`: the share of layers that were projected;
            `energy_shed`: the share of the gradient's squared norm over all of them that was taken away;
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

    def _take_hidden(self) -> tuple[list[Tensor], Tensor]:
        hidden = self._hidden_states.take()
        for index, parameters in enumerate(self.parameters[: len(self.layers)]):
            if parameters and not hidden[index].requires_grad:
                raise RuntimeError(
                    f"The hidden states of layer {index} need no gradient, so it would be unprotected: run "
                    "the forward pass with gradients enabled and, if checkpointed, with use_reentrant=False."
                )
        for index, x_BTD in enumerate(hidden):
            if x_BTD.shape != (*self._mask_BT.shape, self.anchor.hidden_size):
                raise ValueError(
                    f"The hidden states of layer {index} have shape {tuple(x_BTD.shape)}, which does not fit "
                    f"a mask of shape {tuple(self._mask_BT.shape)} and an anchor of size {self.anchor.hidden_size}: "
                    "give collect() the mask of this batch, and the isolator the anchor of these layers."
                )
        return hidden, self._mask_BT.to(hidden[0].device)


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
