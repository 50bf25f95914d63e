"""Running text as a model reads it, against the pretrained one: divergence, agreement, perplexity; and their files.

`results.json` is laid out as that of questions, less what only answers have; `paragraphs.jsonl` has a line a paragraph.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm import tqdm

from aegis_eval.statistics.intervals import Interval, mean_interval
from aegis_policy.support import ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_directory
from aegis_policy.support.json_files import write_json, write_jsonl
from aegis_policy.vlm.backbone import ReadText, VLMBackbone
from aegis_policy.vqa.texts import TextChange, text_change

PARAGRAPHS = "paragraphs.jsonl"
_SHOWN = 80
"""Characters of a paragraph by which its line is known."""


@dataclass(frozen=True)
class Figure:
    """A mean over the tokens of all paragraphs, with its 95 % interval, paragraphs being resampled."""

    value: float
    ci: Interval


@dataclass(frozen=True)
class TextFigures:
    """What was found over `n` paragraphs of so many tokens: where nothing is compared, perplexity alone.

    Attributes:
        kl: KL(pretrained || model) of the next token, nats a token.
        agreement: share of the tokens where both find the same next one likeliest.
        perplexity: of the text, for the model.
        pretrained_perplexity: the same for the pretrained model.
    """

    n: int
    tokens: int
    perplexity: Figure
    kl: Figure | None = None
    agreement: Figure | None = None
    pretrained_perplexity: Figure | None = None

    @classmethod
    def of(cls, readings: Sequence[TextChange], *, compared: bool) -> Self:
        """The figures of readings, one a paragraph.

        Raises:
            AegisError: not one token stands behind another.
        """
        lengths = [len(each.kl_T) for each in readings]
        if not sum(lengths):
            raise AegisError(
                "no paragraph has two words in a row, so there is nothing to foretell: write more."
            )
        paragraphs = np.repeat(np.arange(len(readings)), lengths).tolist()

        def mean(name: str) -> Figure:
            values = np.concatenate([getattr(each, name).double().numpy() for each in readings])
            return Figure(float(values.mean()), mean_interval(values, paragraphs))

        own = cls(len(readings), sum(lengths), _exp(mean("nll_T")))
        if not compared:
            return own
        return replace(
            own,
            kl=mean("kl_T"),
            agreement=mean("agrees_T"),
            pretrained_perplexity=_exp(mean("reference_nll_T")),
        )

    def __str__(self) -> str:
        """A line for each."""
        lines = [f"perplexity {_said(self.perplexity)}"]
        if self.kl is not None and self.agreement is not None and self.pretrained_perplexity is not None:
            lines = [
                f"KL to the pretrained model {_said(self.kl, 4)} nats a token",
                f"the same token is likeliest next at {_said(self.agreement, 1, 100)} % of the tokens",
                f"{lines[0]}; pretrained {_said(self.pretrained_perplexity)}",
            ]
        return "\n".join([*lines, f"over {self.n} paragraphs of {self.tokens} tokens, 95 % intervals"])


def _exp(figure: Figure) -> Figure:
    low, high = figure.ci
    return Figure(math.exp(figure.value), (math.exp(low), math.exp(high)))


def _said(figure: Figure, digits: int = 2, times: float = 1) -> str:
    value, low, high = (f"{times * each:.{digits}f}" for each in (figure.value, *figure.ci))
    return f"{value} [{low}, {high}]"


def read_texts(
    vlm: VLMBackbone, pretrained: VLMBackbone | None, paragraphs: Sequence[str]
) -> list[TextChange]:
    """Have a model and the pretrained one read paragraphs, each after the other; ranks share the paragraphs.

    Without a pretrained model it is compared with itself. Memory: both models, and about 32 T V bytes for the T tokens
    (at most 1,024) of the longest paragraph and a vocabulary of V words.

    Raises:
        AegisError: one of them cannot read a paragraph, or they read it in different tokens.
    """
    found = {}
    numbers = range(len(paragraphs))[ranks.index() :: ranks.count()]
    for number in tqdm(numbers, desc="reading", unit="paragraph", disable=ranks.index() > 0):
        own = vlm.read(paragraphs[number])
        other = own if pretrained is None else pretrained.read(paragraphs[number])
        if pretrained is not None and not _comparable(own, other):
            raise AegisError(
                f"{pretrained.name} reads the text in other words than {vlm.name}, so they cannot be compared: name "
                "the VLM that it was made from with --pretrained."
            )
        found[number] = text_change(own.logits_STV[0], other.logits_STV[0], own.tokens_T)
    return [each for _, each in sorted(ranks.gather(found).items())]


def _comparable(one: ReadText, other: ReadText) -> bool:
    return one.logits_STV.shape == other.logits_STV.shape and torch.equal(one.tokens_T, other.tokens_T)


def write_texts(
    folder: Path,
    about: Mapping[str, Any],
    figures: TextFigures,
    paragraphs: Sequence[str],
    readings: Sequence[TextChange],
    provenance: Mapping[str, Any],
) -> None:
    """Write `results.json` and `paragraphs.jsonl` into a folder, whole or not at all.

    Args:
        folder: does not exist, or is empty.
        about: which model, text and pretrained model.
        figures: of all of it.
        paragraphs: that were read.
        readings: of each.
        provenance: JSON-able, where this comes from.
    """
    with atomic_directory(folder) as beside:
        write_json(beside / "results.json", {**about, **asdict(figures), "provenance": provenance})
        write_jsonl(
            beside / PARAGRAPHS,
            (
                {"text": text[:_SHOWN], "tokens": len(each.kl_T), **_means(each, figures.kl is not None)}
                for text, each in zip(paragraphs, readings, strict=True)
            ),
        )


def _means(reading: TextChange, compared: bool) -> dict[str, float]:
    """Over the tokens of a paragraph, if there are any: perplexity's logarithm, and what only a comparison has."""
    found = {"nll": reading.nll_T}
    if compared:
        found |= {
            "kl": reading.kl_T,
            "agreement": reading.agrees_T,
            "pretrained_nll": reading.reference_nll_T,
        }
    return {name: float(x_T.double().mean()) for name, x_T in found.items() if len(x_T)}
