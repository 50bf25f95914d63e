"""Results laid out as lmms-eval (0.7.3) lays them out, for tools that read its folders."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis_eval.questions.sample import Drawn, Sample

_POPE = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")


def write_lmms_eval(
    folder: Path,
    task: str,
    model: str,
    drawn: Drawn,
    given: Sequence[str],
    scores: NDArray[np.float64],
    *,
    date: str,
    seconds: float,
    yes_no: Mapping[str, float] | None = None,
) -> None:
    """Write `MODEL/DATE_results.json` and `MODEL/DATE_samples_TASK.jsonl`.

    Args:
        folder: gets the folder `MODEL`.
        task: what lmms-eval calls the benchmark.
        model: a name or path; the folder has its last two parts, what no file name may hold being `__`.
        drawn: the questions that were asked, of all that the benchmark has.
        given: the answers.
        scores: (N,) theirs.
        date: of the files' names, `2026-11-23T12-00-00`.
        seconds: that it took.
        yes_no: POPE's figures; others have their accuracy alone.
    """
    name = re.sub(r"[\"<>:/|\\?*\[\]]+", "__", "/".join(model.split("/")[-2:]))
    metric = "exact_match" if yes_no is None else _POPE[0]
    figures = {metric: float(np.mean(scores))}
    if yes_no is not None:
        figures |= {f"pope_{key}": yes_no[key] for key in ("precision", "recall", "yes_ratio")}
        figures |= {"pope_f1_score": yes_no["f1"]}
    error = float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else 0.0
    results = {
        "results": {
            task: {
                "alias": task,
                **{f"{key},none": value for key, value in figures.items()},
                f"{metric}_stderr,none": error,
            }
        },
        "group_subtasks": {task: []},
        "n-shot": {task: 0},
        "higher_is_better": {task: dict.fromkeys(figures, True)},
        "n-samples": {task: {"original": drawn.total, "effective": len(drawn.samples)}},
        "config": {"model": "aegis", "model_args": model},
        "date": date,
        "model_name": model,
        "model_name_sanitized": name,
        "total_evaluation_time_seconds": str(seconds),
    }
    place = folder / name
    place.mkdir(parents=True)
    (place / f"{date}_results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    with (place / f"{date}_samples_{task}.jsonl").open("w") as lines:
        for sample, answer, score in zip(drawn.samples, given, scores.tolist(), strict=True):
            line = {
                "doc_id": sample.index,
                "input": sample.question,
                "target": sample.answer,
                "filtered_resps": answer,
                **({metric: score} if yes_no is None else dict.fromkeys(_POPE, _pope(sample, answer, score))),
            }
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def _pope(sample: Sample, answer: str, score: float) -> dict[str, object]:
    """What each of POPE's figures is made of, for one question."""
    return {
        "question_id": sample.id.rpartition("/")[2],
        "score": score,
        "prediction": answer.lower().strip(),
        "ground_truth": sample.answer,
    }
