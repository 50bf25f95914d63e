"""The folder that `aegis-vqa` leaves: `results.json`, `samples.jsonl` and, of public benchmarks, `lmms_eval/`.

Everything in it was scored before; here it is only laid out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aegis_eval.answers.lmms_eval import write_lmms_eval
from aegis_eval.answers.pretrained import PretrainedAnswers
from aegis_eval.answers.scoring import Scores
from aegis_eval.questions.sample import Benchmark, Drawn
from aegis_policy.support.files import atomic_directory
from aegis_policy.support.json_files import write_json, write_jsonl

_RIGHT = 0.5
"""An answer counts as correct from this score on."""


@dataclass(frozen=True)
class Outcome:
    """What a model said to the questions of a benchmark, and how right it was.

    Attributes:
        model: name or path.
        fingerprint: of the VLM's weights.
        benchmark: what was asked.
        split: of the benchmark.
        drawn: the questions.
        answers: one a question.
        pretrained: the answers of the VLM that it is compared with, if there is one.
        scores: of both.
        figures: what the benchmark reports besides.
    """

    model: str
    fingerprint: str
    benchmark: Benchmark
    split: str
    drawn: Drawn
    answers: Sequence[str]
    pretrained: PretrainedAnswers | None
    scores: Scores
    figures: Mapping[str, Mapping[str, float]]


def write_answers(
    folder: Path, outcome: Outcome, provenance: Mapping[str, Any], *, date: datetime, seconds: float
) -> None:
    """Write a folder, whole or not at all.

    Args:
        folder: does not exist, or is empty.
        outcome: what goes into it.
        provenance: JSON-able, where the outcome comes from.
        date: when the command began.
        seconds: how long it took.
    """
    with atomic_directory(folder) as beside:
        write_json(beside / "results.json", _results(outcome, provenance))
        write_jsonl(beside / "samples.jsonl", _records(outcome))
        if outcome.benchmark.lmms_eval_task is not None:
            write_lmms_eval(
                beside / "lmms_eval",
                outcome.benchmark.lmms_eval_task,
                outcome.model,
                outcome.drawn,
                outcome.answers,
                outcome.scores.answers,
                date=f"{date:%Y-%m-%dT%H-%M-%S}",
                seconds=seconds,
                yes_no=outcome.figures.get("all"),
            )


def _results(outcome: Outcome, provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "vlm_fingerprint": outcome.fingerprint,
        "benchmark": outcome.benchmark.name,
        "split": outcome.split,
        "pretrained_model": outcome.pretrained.name if outcome.pretrained is not None else None,
        **outcome.scores.to_dict(),
        **({"yes_no": outcome.figures} if "all" in outcome.figures else outcome.figures),
        "provenance": provenance,
    }


def _records(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A line a question."""
    for index, sample in enumerate(outcome.drawn.samples):
        yield {
            "id": sample.id,
            "scene": str(sample.scene),
            "type": sample.type,
            "question": sample.question,
            "answer": sample.answer,
            "given": outcome.answers[index],
            **_judged(outcome.scores.answers[index]),
            **_before(outcome, index),
        }


def _before(outcome: Outcome, index: int) -> dict[str, Any]:
    if outcome.pretrained is None or outcome.scores.pretrained_answers is None:
        return {}
    judged = _judged(outcome.scores.pretrained_answers[index])
    return {"pretrained": outcome.pretrained.answers[index]} | {
        f"pretrained_{key}": value for key, value in judged.items()
    }


def _judged(score: float) -> dict[str, Any]:
    return {"score": float(score), "correct": bool(score >= _RIGHT)}
