"""Texts without pictures, which flags name as `text:FILE`: `.jsonl` are questions, `.txt` is running text.

Running text is compared, not scored: what a model would say behind each of its tokens against what another one would.
Shapes: T tokens, V vocabulary.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from aegis_policy.support.errors import AegisError
from aegis_policy.vqa.sources import expanded

SOURCE = "text"
QUESTIONS, RUNNING = ".jsonl", ".txt"


def text_file(source: str, flag: str = "") -> Path | None:
    """The file of `text:FILE`; None if a source is none of this kind.

    Args:
        source: what a flag names.
        flag: what errors begin with, `--benchmark=` for instance.

    Raises:
        AegisError: there is no such file, or its name ends otherwise.
    """
    name, colon, place = source.partition(":")
    if name != SOURCE or not colon:
        return None
    file = Path(expanded(place))
    if file.suffix not in (QUESTIONS, RUNNING):
        raise AegisError(f"{flag}{source} must end with {QUESTIONS} (questions) or {RUNNING} (running text).")
    if not file.is_file():
        raise AegisError(f"{flag}{source} names no file: give the path of one.")
    return file


def read_paragraphs(file: Path, count: int, seed: int = 0) -> list[str]:
    """The paragraphs of running text, empty lines being between them; of more than `count` so many, drawn at random.

    Raises:
        AegisError: the file cannot be read as UTF-8, or holds none.
    """
    try:
        whole = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AegisError(f"{file} cannot be read as text ({error}): save it as UTF-8.") from error
    paragraphs = [each.strip() for each in re.split(r"\n\s*\n", whole) if each.strip()]
    if not paragraphs:
        raise AegisError(f"{file} holds no paragraph: write some text into it.")
    if len(paragraphs) <= count:
        return paragraphs
    drawn = np.random.default_rng(seed).choice(len(paragraphs), count, replace=False)
    return [paragraphs[index] for index in sorted(drawn)]


@dataclass(frozen=True)
class TextChange:
    """Running text as two models read it, one figure for each of its tokens but the first.

    Attributes:
        kl_T: Kullback-Leibler divergence of the model's next token from the reference's, KL(reference || model), nats.
        agrees_T: whether both find the same token likeliest.
        nll_T, reference_nll_T: minus the log-likelihood of the token that came, nats.
    """

    kl_T: Tensor
    agrees_T: Tensor
    nll_T: Tensor
    reference_nll_T: Tensor


def text_change(logits_TV: Tensor, reference_TV: Tensor, tokens_T: Tensor) -> TextChange:
    """Compare what two models would say behind each token of a text, the last left out; figures are on the CPU.

    Args:
        logits_TV: of the model.
        reference_TV: of the reference, over the same vocabulary.
        tokens_T: of the text.
    """
    model_TV, reference_TV = (each[:-1].float().log_softmax(-1) for each in (logits_TV, reference_TV))
    came_T1 = tokens_T[1:, None]
    return TextChange(
        kl_T=(reference_TV.exp() * (reference_TV - model_TV)).sum(-1).cpu(),
        agrees_T=(model_TV.argmax(-1) == reference_TV.argmax(-1)).cpu(),
        nll_T=-model_TV.gather(1, came_T1).squeeze(1).cpu(),
        reference_nll_T=-reference_TV.gather(1, came_T1).squeeze(1).cpu(),
    )
