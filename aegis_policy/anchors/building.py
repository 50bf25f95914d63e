"""Running a pretrained VLM over what it must not forget, and what is gathered on the way for its anchor.

Two kinds of batches: questions about images, which the model reads with its own answers behind them, and frames of a
robot dataset, which it reads as the policy will. Only the first have answers, so Fisher information is theirs alone.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from aegis_policy.isolation import (
    EPS,
    Anchor,
    FactorAccumulator,
    GaussianAnchor,
    LinearFactors,
    MomentAccumulator,
    NoiseAccumulator,
    global_moments,
)
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.prompts import NO_LABEL
from aegis_policy.vqa.examples import VQAExample

KINDS = ("gaussian", "subspace", "kronecker", "fisher")
TOKEN_GROUPS = ("all", "image", "text")


class Gathers(Protocol):
    """One kind of statistics, fed batch by batch; its state continues an interrupted pass."""

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None: ...
    def frames(self, inputs: dict[str, Tensor]) -> None: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class RobotFrame:
    """What the policy sees at one moment: an image (3, H, W) in [0, 1] of every camera, and the instruction."""

    images: tuple[Tensor, ...]
    instruction: str


class AnchorBuilder:
    """Statistics of a VLM over the batches added so far.

    Memory: for each linear layer (D inputs, E outputs) 24 `rank` (D + E) bytes of sketches, or 12 D^2 where D is not
    wider than twice the rank, and the activations of one batch.

    Args:
        vlm: the pretrained model.
        kinds: of `KINDS`, what to gather.
        rank: eigenpairs kept for each side of a linear layer.
        seed: of the sketches and of the answers that are drawn.
    """

    def __init__(self, vlm: VLMBackbone, kinds: Collection[str], rank: int = 256, seed: int = 0) -> None:
        self.vlm = vlm.eval()
        self.kinds = tuple(kinds)
        self._parts: dict[str, Gathers] = {}
        if "gaussian" in kinds:
            self._parts["moments"] = _Moments(vlm)
        if {"subspace", "kronecker"} & set(kinds):
            self._parts["factors"] = _Factors(vlm, rank, seed, outputs="kronecker" in kinds)
        if "fisher" in kinds:
            self._parts["fisher"] = _Fisher(vlm, seed)
        self._needs_answers = any(not isinstance(part, _Moments) for part in self._parts.values())

    def add_questions(self, batch: Sequence[VQAExample], number: int) -> None:
        """Take in a batch; its `number` in the stream decides which answers are drawn for the Fisher information."""
        answers: list[str] = []
        if self._needs_answers:
            answers = self.vlm.answer([each.image for each in batch], [each.question for each in batch])
        for part in self._parts.values():
            part.questions(batch, answers, number)

    def add_frames(self, batch: Sequence[RobotFrame]) -> None:
        """Take in a batch of robot frames, all with the same cameras."""
        cameras = [torch.stack(views) for views in zip(*(frame.images for frame in batch), strict=True)]
        inputs = self.vlm.prepare(cameras, [frame.instruction for frame in batch])
        for part in self._parts.values():
            part.frames(inputs)

    def state(self) -> dict[str, Tensor]:
        """Flat tensors that `load_state` of a builder of the same model, kinds and rank continues from."""
        return {f"{name}/{key}": x for name, part in self._parts.items() for key, x in part.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue where the builder that returned `state` was."""
        for name, part in self._parts.items():
            prefix = f"{name}/"
            part.load_state({key[len(prefix) :]: x for key, x in state.items() if key.startswith(prefix)})

    def anchor(self, metadata: dict[str, str]) -> Anchor:
        """What was gathered.

        Raises:
            AegisError: a part of the model never took part, or computed values that are not finite.
        """
        moments, factors, fisher = (self._parts.get(name) for name in ("moments", "factors", "fisher"))
        try:
            return Anchor(
                moments.gaussians() if isinstance(moments, _Moments) else {},
                factors.factors() if isinstance(factors, _Factors) else {},
                fisher.importance() if isinstance(fisher, _Fisher) else {},
                metadata,
            )
        except ValueError as error:
            raise AegisError(f"The anchor of {self.vlm.name} cannot be made: {error}") from error


class _Moments:
    """Mean and deviation of every decoder layer's output: of all tokens, those of images, those of text."""

    def __init__(self, vlm: VLMBackbone) -> None:
        self.vlm = vlm
        self.moments = {group: [MomentAccumulator() for _ in range(vlm.num_layers)] for group in TOKEN_GROUPS}
        self.noise = {group: NoiseAccumulator() for group in TOKEN_GROUPS}

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        images, questions = [each.image for each in batch], [each.question for each in batch]
        self.frames(self.vlm.question_inputs(images, questions))

    @torch.no_grad()
    def frames(self, inputs: dict[str, Tensor]) -> None:
        prefix = self.vlm.encode(inputs)
        is_image = self.vlm.image_tokens(inputs)
        masks = {"all": prefix.mask, "image": prefix.mask & is_image, "text": prefix.mask & ~is_image}
        for group, mask_BT in masks.items():
            for accumulator, hidden in zip(self.moments[group], prefix.hidden_states, strict=True):
                accumulator.update(hidden, mask_BT)
            if mask_BT.any():
                batch = global_moments(prefix.hidden_states, mask_BT, EPS)
                self.noise[group].update(batch, len(mask_BT))

    def gaussians(self) -> dict[str, GaussianAnchor]:
        anchors = {}
        for group, accumulators in self.moments.items():
            exact = GaussianAnchor.from_accumulators(accumulators)
            noise_LD = self.noise[group].noise(exact.mean_LD, exact.std_LD)
            anchors[group] = GaussianAnchor(exact.mean_LD, exact.std_LD, exact.count, noise_LD)
        return anchors

    def state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = {}
        for group, accumulators in self.moments.items():
            state |= {f"{group}/noise/{key}": x for key, x in self.noise[group].state().items()}
            for depth, accumulator in enumerate(accumulators):
                state |= {f"{group}/{depth}/{key}": x for key, x in accumulator.state().items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for group, accumulators in self.moments.items():
            self.noise[group].load_state({key: state[f"{group}/noise/{key}"] for key in ("batches", "sums")})
            for depth, accumulator in enumerate(accumulators):
                keys = accumulator.state()
                accumulator.load_state({key: state[f"{group}/{depth}/{key}"] for key in keys})


class _Factors:
    """Covariances of what goes into every linear layer and, of questions, of its outputs' gradients."""

    def __init__(self, vlm: VLMBackbone, rank: int, seed: int, *, outputs: bool) -> None:
        self.vlm, self.seed, self.backward = vlm, seed, outputs
        prefix = vlm.family.decoder_layers
        decoder = {name: layer for name, layer in vlm.linear_layers.items() if name.startswith(prefix)}
        vision = {name: layer for name, layer in vlm.linear_layers.items() if name not in decoder}
        self.decoder, self.vision = (
            FactorAccumulator(part, rank, outputs=outputs, seed=seed) for part in (decoder, vision)
        )

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        inputs = _answered(self.vlm, batch, answers)
        # Every layer's outputs depend on the pixels: their gradient is one that passes through all of them.
        inputs["pixel_values"].requires_grad_(self.backward)
        with (
            self.decoder.collect(inputs["attention_mask"]),
            self.vision.collect(),
            torch.set_grad_enabled(self.backward),
        ):
            loss = _loss_of_drawn_answers(self.vlm, inputs, [self.seed, number])
            if self.backward:
                torch.autograd.grad(loss, inputs["pixel_values"])

    @torch.no_grad()
    def frames(self, inputs: dict[str, Tensor]) -> None:
        with self.decoder.collect(inputs["attention_mask"]), self.vision.collect():
            self.vlm.encode(inputs)

    def factors(self) -> dict[str, LinearFactors]:
        return self.decoder.factors() | self.vision.factors()

    def state(self) -> dict[str, Tensor]:
        return self.decoder.state() | self.vision.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.decoder.load_state(state)
        self.vision.load_state(state)


class _Fisher:
    """Fisher information of single weights, one sample at a time."""

    def __init__(self, vlm: VLMBackbone, seed: int) -> None:
        self.vlm, self.seed = vlm, seed
        self.weights = _weights(vlm)
        self.totals = {name: torch.zeros_like(p) for name, p in self.weights.items()}

    def questions(self, batch: Sequence[VQAExample], answers: Sequence[str], number: int) -> None:
        for index, (example, answer) in enumerate(zip(batch, answers, strict=True)):
            loss = _loss_of_drawn_answers(
                self.vlm, _answered(self.vlm, [example], [answer]), [self.seed, number, index]
            )
            gradients = torch.autograd.grad(loss, list(self.weights.values()), allow_unused=True)
            for total, gradient in zip(self.totals.values(), gradients, strict=True):
                if gradient is not None:
                    total.addcmul_(gradient, gradient)

    def frames(self, inputs: dict[str, Tensor]) -> None:
        """They have no answers."""

    def importance(self) -> dict[str, Tensor]:
        mean = sum(float(x.sum()) for x in self.totals.values()) / sum(
            x.numel() for x in self.totals.values()
        )
        if mean == 0:
            raise ValueError("no answer's gradient reached a weight, so all Fisher information is zero.")
        return {name: fisher.cpu() / mean for name, fisher in self.totals.items()}

    def state(self) -> dict[str, Tensor]:
        return self.totals

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        for name, total in self.totals.items():
            total.copy_(state[name])


def _answered(vlm: VLMBackbone, batch: Sequence[VQAExample], answers: Sequence[str]) -> dict[str, Tensor]:
    return vlm.answer_inputs([each.image for each in batch], [each.question for each in batch], answers)


def _loss_of_drawn_answers(vlm: VLMBackbone, inputs: dict[str, Tensor], seed: Sequence[int]) -> Tensor:
    """Of tokens drawn from the model's own predictions: Fisher information is about those, not about labels."""
    logits_NKV, labels_NK = vlm.answer_logits(inputs)
    logits_MV = logits_NKV[labels_NK != NO_LABEL].float()
    drawn_M = torch.multinomial(logits_MV.detach().softmax(-1).cpu(), 1, generator=drawing(seed)).squeeze(1)
    return torch.nn.functional.cross_entropy(logits_MV, drawn_M.to(logits_MV.device), reduction="sum")


def drawing(seed: Sequence[int]) -> torch.Generator:
    """What draws a batch's answers: of its place in the stream alone, so that a continued pass draws the same."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(list(seed)).generate_state(1)[0]))


def _weights(vlm: VLMBackbone) -> dict[str, nn.Parameter]:
    """Everything that may ever learn under a protection, by its name in the model."""
    parts = (vlm.vision_tower, vlm.projector, vlm.decoder_layers)
    wanted = {id(p) for part in parts for p in part.parameters()}
    return {name: p for name, p in vlm.model.named_parameters() if id(p) in wanted}
