"""Ask a VLM questions in batches, over all ranks, and go on where an interrupted command was."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import batched
from pathlib import Path

from tqdm import tqdm

from aegis_eval.answers.log import AnswerLog
from aegis_eval.questions.sample import Sample, fingerprint
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.vlm.backbone import VLMBackbone


def answer_samples(
    vlm: VLMBackbone,
    samples: Sequence[Sample],
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


@dataclass(frozen=True)
class Asking:
    """The questions of one command and how its models are asked, by all ranks together.

    Attributes:
        samples: the questions.
        batch_size: questions at a time.
        max_new_tokens: longest answer.
        logs: the folder that keeps answers until the command is done, so that the same command goes on where it was;
            None if it could not find the folder again.
    """

    samples: Sequence[Sample]
    batch_size: int
    max_new_tokens: int
    logs: Path | None = None

    def ask(self, vlm: VLMBackbone, weights: str, role: str) -> list[str]:
        """One answer a question.

        Args:
            vlm: answers.
            weights: the folder, if it is one, that the model was read from.
            role: names the progress bar, and the answers among those of the command's other models.

        Raises:
            AegisError: it cannot read a question; or kept answers are another model's, or to other questions.
        """
        for sample in self.samples:
            if (reason := vlm.refuses(sample.question)) is not None:
                raise AegisError(f"The question of {sample.origin} {reason}.")
        log = None
        if self.logs is not None:
            about = {
                "model": [vlm.fingerprint(), str(vlm.model.dtype), *_versions(weights)],
                "questions": fingerprint(self.samples),
                "batch_size": self.batch_size,
                "max_new_tokens": self.max_new_tokens,
                **_pictures(self.samples),
            }
            log = AnswerLog(self.logs / role, about, ranks.index())
        return answer_samples(
            vlm, self.samples, self.batch_size, self.max_new_tokens, role, log, across_ranks=True
        )


def _versions(folder: str) -> list[str]:
    """What tells weights that were written anew from those that were there."""
    files = sorted(Path(folder).resolve().glob("*.safetensors"))
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _pictures(samples: Iterable[Sample]) -> dict[str, str]:
    """What tells pictures in files from others of the same names; nothing of those that are rendered or in tables."""
    files = [picture for each in samples if isinstance(picture := getattr(each, "picture", None), Path)]
    if not files:
        return {}
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    return {"pictures": digest.hexdigest()}
