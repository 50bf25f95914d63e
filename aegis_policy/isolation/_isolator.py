"""Collects hidden states, takes the anchor gradient on the same graph, projects the task gradient.

Shape suffixes: B batch, T tokens, D hidden dimension, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from aegis_policy.isolation._anchor_gradients import AnchorGradients
from aegis_policy.isolation._gaussian import GaussianAnchor, w2_cotangents, w2_squared
from aegis_policy.isolation._moments import EPS, at_least_float32, global_moments
from aegis_policy.isolation._projection import LayerProjection, project_


class GradientIsolator:
    """Holds what one optimizer step needs in order to keep a backbone's layers near their anchor.

    A step is, in this order: `with collect(mask): forward`, `accumulate()`, the task's own backward,
    `project_()`, the optimizer's step, `clear()`. `ProjectedAdamW` does the last three. With gradient
    accumulation the first three repeat, and both gradients add up.

    Under `torch.distributed` the moments are those of the global batch and anchor gradients are summed over
    ranks; task gradients must already be the same on all ranks (DDP averages them). Every rank must call
    `accumulate()` and `project_()` equally often, whatever its batch holds.

    Args:
        layers: the L modules whose outputs the anchor describes, in its order. A layer returns its hidden
            states (B, T, D), or a tuple that starts with them.
        anchor: of the same L layers.
        parameters: for each layer the parameters to protect, by default all; frozen ones are left
            out, and one shared by several layers belongs to the first.
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
        eps: float = EPS,
    ) -> None:
        anchor.check(len(layers), anchor.hidden_size)
        if parameters is None:
            parameters = [list(layer.parameters()) for layer in layers]
        if len(parameters) != len(layers):
            raise ValueError(
                f"`parameters` has {len(parameters)} entries for {len(layers)} layers: give one each."
            )
        self.layers = list(layers)
        self.anchor = anchor
        self.eps = eps
        self.parameters = _trainable_once(parameters)
        if not any(self.parameters):
            raise ValueError("No layer has a parameter that requires gradients: there is nothing to protect.")
        self._mask_BT: Tensor | None = None
        self._hidden: dict[int, Tensor] = {}
        self._anchor_moments = anchor.mean_LD, anchor.std_LD
        self._anchor_grads = AnchorGradients(self.parameters)
        self._distance = 0.0
        self._projection: Tensor | None = None

    @contextmanager
    def collect(self, mask_BT: Tensor) -> Iterator[None]:
        """Keep the output hidden states of every layer that runs inside the block.

        Args:
            mask_BT: bool, True for a valid token of the hidden states.
        """
        self._mask_BT, self._hidden = mask_BT.bool(), {}
        hooks = [
            layer.register_forward_hook(partial(self._keep_output, index))
            for index, layer in enumerate(self.layers)
        ]
        try:
            yield
        except BaseException:
            self._hidden = {}
            raise
        finally:
            for hook in hooks:
                hook.remove()

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
        mean0_LD, std0_LD = self._anchor_like(hidden[0])
        moments = global_moments(hidden, mask_BT, self.eps)
        loss = w2_squared(moments.mean_LD, moments.std_LD, mean0_LD, std0_LD)
        cotangents = w2_cotangents(hidden, mask_BT, moments, mean0_LD, std0_LD)
        with_graph = [
            (x, cotangent) for x, cotangent in zip(hidden, cotangents, strict=True) if x.requires_grad
        ]
        grads = torch.autograd.grad(
            [x for x, _ in with_graph],
            [p for layer in self.parameters for p in layer],
            [cotangent for _, cotangent in with_graph],
            retain_graph=True,
            allow_unused=True,  # an expert without tokens, say; add() refuses a layer without any gradient
        )
        self._anchor_grads.add(grads)
        self._distance, tokens = torch.stack([loss, moments.tokens]).tolist()
        if tokens == 0:
            raise ValueError(
                "The mask given to collect() has no valid token: there are no moments to compare."
            )
        return self._distance

    @torch.no_grad()
    def project_(self) -> None:
        """Sum the anchor gradients over ranks and project every layer's `.grad`.

        A parameter that the task did not reach (`.grad` is None) is no part of the layer's vector and stays
        as it is. A rank that accumulated nothing contributes zeros.

        Raises:
            RuntimeError: no rank accumulated an anchor gradient since the last `clear()`.
        """
        projections = []
        for parameters, anchor_grads in zip(self.parameters, self._anchor_grads.reduce(), strict=True):
            reached = [
                (p.grad, a) for p, a in zip(parameters, anchor_grads, strict=True) if p.grad is not None
            ]
            if reached:
                projections.append(project_([g for g, _ in reached], [a for _, a in reached]))
        self._projection = _summarize(projections) if projections else None

    def clear(self) -> None:
        """Forget the step's anchor gradients."""
        self._anchor_grads.clear()

    def metrics(self) -> dict[str, float]:
        """Figures for a training log, zero before the first step; the keys never change.

        Returns:
            `anchor_distance`: the anchor loss at the last `accumulate()`. And of the last `project_()`:
            `conflict_fraction`: the share of layers that were projected; `energy_shed`: the share of the
            task gradient's squared norm over all layers that was taken away; `unprojected_layers`: how many
            layers had an anchor gradient that was zero or not finite.
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

    def _keep_output(self, index: int, layer: nn.Module, args: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # a checkpointed layer is being recomputed during a backward pass
        if index in self._hidden:
            raise RuntimeError(
                f"Layer {index} ran twice inside one collect() block: use one block for each forward."
            )
        self._hidden[index] = output[0] if isinstance(output, tuple) else output

    def _take_hidden(self) -> tuple[list[Tensor], Tensor]:
        hidden, self._hidden = self._hidden, {}
        if not hidden or self._mask_BT is None:
            raise RuntimeError(
                "No hidden states were collected: run the forward pass inside collect(mask) first."
            )
        if missing := [index for index in range(len(self.layers)) if index not in hidden]:
            raise RuntimeError(
                f"Layers {missing} did not run inside collect(), so they would be unprotected."
            )
        for index, parameters in enumerate(self.parameters):
            if parameters and not hidden[index].requires_grad:
                raise RuntimeError(
                    f"The hidden states of layer {index} need no gradient, so it would be unprotected: run "
                    "the forward pass with gradients enabled and, if checkpointed, with use_reentrant=False."
                )
        ordered = [hidden[index] for index in range(len(self.layers))]
        mask_BT = self._mask_BT.to(ordered[0].device)
        for index, x_BTD in enumerate(ordered):
            if x_BTD.shape != (*mask_BT.shape, self.anchor.hidden_size):
                raise ValueError(
                    f"The hidden states of layer {index} have shape {tuple(x_BTD.shape)}, which does not fit "
                    f"a mask of shape {tuple(mask_BT.shape)} and an anchor of size {self.anchor.hidden_size}."
                )
        return ordered, mask_BT

    def _anchor_like(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean0_LD, std0_LD = self._anchor_moments
        if mean0_LD.device != x.device or mean0_LD.dtype != at_least_float32(x).dtype:
            dtype = torch.promote_types(x.dtype, torch.float32)
            self._anchor_moments = mean0_LD.to(x.device, dtype), std0_LD.to(x.device, dtype)
        return self._anchor_moments


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
