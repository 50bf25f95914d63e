"""Ask a VLM questions in batches, over all ranks, and go on where an interrupted command was."""

from collections.abc import Sequence
from itertools import batched
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from aegis_eval.answers.log import AnswerLog
from aegis_eval.answers.scoring import Asked
from aegis_policy.support import ranks
from aegis_policy.vlm.backbone import VLMBackbone


class AskedWithImage(Asked, Protocol):
    """A question to ask; `image` is (H, W, 3) uint8."""

    @property
    def id(self) -> str: ...
    @property
    def image(self) -> NDArray[np.uint8]: ...


def answer_samples(
    vlm: VLMBackbone,
    samples: Sequence[AskedWithImage],
    batch_size: int = 32,
    max_new_tokens: int = 8,
    description: str | None = None,
    log: AnswerLog | None = None,
    *,
    across_ranks: bool = False,
) -> list[str]:
    """One answer a sample, in order; questions of similar length share a batch.

    Args:
        vlm: answers.
        samples: questions with images.
        batch_size: questions at a time.
        max_new_tokens: longest answer.
        description: names the progress bar; without it there is none.
        log: gets the answers batch by batch; what it holds already is not asked again.
        across_ranks: all ranks call this with the same samples, share the batches, and get all answers.
    """
    ordered = sorted(samples, key=lambda sample: (sample.type, len(sample.question)))
    own = list(batched(ordered, batch_size))
    if across_ranks:
        own = own[ranks.index() :: ranks.count()]
    answers = dict(log.answers) if log is not None else {}
    silent = description is None or ranks.index() > 0
    with tqdm(total=sum(map(len, own)), desc=description, unit="question", disable=silent) as bar:
        for batch in own:
            if not all(sample.id in answers for sample in batch):
                given = vlm.answer(
                    [sample.image for sample in batch],
                    [sample.question for sample in batch],
                    max_new_tokens=max_new_tokens,
                )
                new = [(sample.id, answer) for sample, answer in zip(batch, given, strict=True)]
                answers |= new
                if log is not None:
                    log.add(new)
            bar.update(len(batch))
    if across_ranks:
        answers = ranks.gather(answers)
    return [answers[sample.id] for sample in samples]
