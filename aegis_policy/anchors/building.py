"""From a pretrained VLM and what it must not forget to its anchor, in one pass.

Three kinds of batches: questions, mostly about images, which the model answers; frames of a robot dataset, which it
reads as the policy will; and paragraphs of running text, which its language model reads plain. Only the first have
answers, so what is known of their gradients is theirs alone. What is gathered on the way is decided in `kinds`; most of
it is seen while the model reads, which it does once.
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import batched
from typing import Any

import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from aegis_policy.anchors.gradients import QUESTIONS, with_gradients
from aegis_policy.anchors.kinds import gatherers
from aegis_policy.anchors.unfinished import UnfinishedPass
from aegis_policy.isolation import DEFAULT_SHARE, FISHER_EXACT, Anchor
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vqa.examples import VQAExample


@dataclass(frozen=True)
class RobotFrame:
    """What the policy sees at one moment: an image (3, H, W) in [0, 1] of every camera, and the instruction."""

    images: tuple[Tensor, ...]
    instruction: str


Batch = Sequence[VQAExample] | Sequence[RobotFrame] | Sequence[str]
"""Samples of one kind; a string is a paragraph of running text."""


def build_anchor(
    vlm: VLMBackbone,
    examples: Iterable[VQAExample],
    *,
    kinds: Sequence[str],
    source: str,
    batch_size: int,
    share: float = DEFAULT_SHARE,
    total: int | None = None,
    seed: int = 0,
) -> Anchor:
    """The anchor of a VLM over questions; see `AnchorBuilder` for the memory it takes.

    Args:
        vlm: the pretrained model.
        examples: pictures and questions that it must go on answering.
        kinds: of `KINDS`.
        source: where the examples come from, for the anchor's metadata.
        batch_size: samples at a time.
        share: of the directions of every linear layer's inputs to keep.
        total: how many examples there are, for the progress bar.
        seed: of the sketches and of the signs in the Fisher information.

    Raises:
        AegisError: there are no examples, a part of the model never took part, or computed values that are not finite.
    """
    return anchor_of_batches(
        vlm, batched(examples, batch_size), kinds=kinds, source=source, share=share, total=total, seed=seed
    )


def anchor_of_batches(
    vlm: VLMBackbone,
    batches: Iterable[Batch],
    *,
    kinds: Sequence[str],
    source: str,
    share: float,
    total: int | None,
    seed: int,
    unfinished: UnfinishedPass | None = None,
) -> Anchor:
    """The anchor of a VLM over batches of questions, frames and paragraphs; options as in `build_anchor`.

    Args:
        unfinished: where the pass is kept on the way and goes on from; the same batches have to come again. To be
            discarded once the anchor is saved.

    Raises:
        AegisError: as in `build_anchor`.
    """
    builder = AnchorBuilder(vlm, kinds, share, seed)
    number, count = unfinished.restore(builder) if unfinished else (0, 0)
    with tqdm(total=total, initial=count, desc="anchor", unit="sample") as bar:
        try:
            for index, batch in enumerate(batches):
                builder.remember(batch)
                if index < number:  # taken in before the pass was interrupted
                    continue
                builder.add(batch, number)
                number, count = number + 1, count + len(batch)
                bar.update(len(batch))
                if unfinished:
                    unfinished.save(builder, number, count)
        except AegisError:  # of a sample, which can be mended
            if unfinished:
                unfinished.save(builder, number, count, at_once=True)
            raise
    if not count:
        raise AegisError(
            f"The anchor of {vlm.name} cannot be made: there is no sample in {source}; add questions, frames or text."
        )
    metadata = {
        "vlm": vlm.name,
        "fingerprint": vlm.fingerprint(),
        "samples": str(count),
        "source": source,
        "kinds": ",".join(kinds),
        "share": str(share),
        "seed": str(seed),
        "tokens": "all valid tokens of image, question and text; for covariances those that its own answer is read "
        "from too",
        "fisher": f"sum over tokens: the {FISHER_EXACT} heaviest of each answer, the others together with random signs",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    return builder.anchor(metadata)


class AnchorBuilder:
    """Statistics of a VLM over the batches added so far.

    Memory: what each kind's gatherer holds (`factors`, `fisher`), and the activations of one batch.

    Args:
        vlm: the pretrained model.
        kinds: of `KINDS`, what to gather.
        share: of the directions of every linear layer's inputs to keep.
        seed: of the sketches and of the signs in the Fisher information.
    """

    def __init__(
        self, vlm: VLMBackbone, kinds: Collection[str], share: float = DEFAULT_SHARE, seed: int = 0
    ) -> None:
        self.vlm = vlm.eval()
        self._parts = gatherers(vlm, kinds, share, seed)
        self._needs_answers = vlm.whole and any(part.needs_answers for part in self._parts.values())
        self._random = random.Random(seed)
        self._some: list[VQAExample] = []
        self._passed = 0

    def remember(self, batch: Batch) -> None:
        """Keep a few questions for their gradient, drawn evenly from all that come by (Vitter's algorithm R)."""
        for each in batch:
            if isinstance(each, VQAExample) and self.vlm.whole:
                place = self._random.randrange(self._passed + 1)
                self._passed += 1
                if len(self._some) < QUESTIONS:
                    self._some.append(each)
                elif place < QUESTIONS:
                    self._some[place] = each

    def add(self, batch: Batch, number: int) -> None:
        """Take in the batch of this `number` in the stream, all of one kind."""
        if frames := [each for each in batch if isinstance(each, RobotFrame)]:
            self.add_frames(frames)
        elif paragraphs := [each for each in batch if isinstance(each, str)]:
            self.add_paragraphs(paragraphs)
        else:
            self.add_questions([each for each in batch if isinstance(each, VQAExample)], number)

    def add_questions(self, batch: Sequence[VQAExample], number: int) -> None:
        """Take in a batch; its `number` in the stream decides the signs in the Fisher information."""
        inputs = self.vlm.question_inputs([each.image for each in batch], [each.question for each in batch])
        answers = self._read(inputs, answer=self._needs_answers)
        for part in self._parts.values():
            part.answered(batch, answers, number)

    def add_frames(self, batch: Sequence[RobotFrame]) -> None:
        """Take in a batch of robot frames, all with the same cameras."""
        cameras = [torch.stack(views) for views in zip(*(frame.images for frame in batch), strict=True)]
        self._read(self.vlm.prepare(cameras, [frame.instruction for frame in batch]), answer=False)

    def add_paragraphs(self, batch: Sequence[str]) -> None:
        """Take in a batch of paragraphs, each read by itself; the vision side sees nothing of them."""
        for paragraph in batch:
            self._read(self.vlm.text_inputs(paragraph), answer=False)

    @torch.no_grad()
    def _read(self, inputs: dict[str, Tensor], *, answer: bool) -> list[str]:
        """Have the model read prepared inputs, and answer them, under the eyes of all parts."""
        with ExitStack() as stack:
            watching = [stack.enter_context(part.watch(inputs)) for part in self._parts.values()]
            if answer:
                return self.vlm.answer_to(
                    inputs, before_each=lambda goes_on_N: [each(goes_on_N) for each in watching]
                )
            self.vlm.encode(inputs)
        return []

    def state(self) -> dict[str, Tensor]:
        """Flat tensors that `load_state` of a builder of the same model, kinds and share continues from."""
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
        gathered: dict[str, Any] = {}
        try:
            for part in self._parts.values():
                gathered |= part.gathered()
        except ValueError as error:
            raise AegisError(f"The anchor of {self.vlm.name} cannot be made: {error}") from error
        if "factors" in gathered and self._some:
            gathered["factors"] = with_gradients(self.vlm, self._some, gathered["factors"])
        return Anchor(**gathered, metadata=metadata)
