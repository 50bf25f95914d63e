"""What a command found, as plain JSON-able data: a function for the output of each command that an experiment runs.

These are the raw outcomes that tables, intervals and pages are computed from; they hold no statistics of their own.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from aegis_eval.results.acted import read_acted
from aegis_eval.results.rollouts import read_rollouts
from aegis_eval.results.run import Json, read_answers, read_vqa
from aegis_eval.results.swap import read_swaps
from aegis_eval.results.training_log import read_curves
from aegis_policy.support.json_files import read_json, read_jsonl


def curves(metrics: Path) -> dict[str, Json]:
    """Training figures: name -> `steps`, `values`."""
    return {name: asdict(curve) for name, curve in read_curves(metrics).items()}


def outcomes(eval_info: Path) -> dict[str, str]:
    """Rollouts: task -> a `1` for every episode that succeeded, else a `0`, in the order of the initial states."""
    return {task.task: bits(task.outcomes) for task in read_rollouts(eval_info.parent).tasks}


def answers(results: Path) -> Json:
    """Answers: accuracy, also by question type, and a `1` for every question answered correctly, with its scene.

    Where the pretrained model was asked too, `pretrained` holds its accuracy and bits.
    """
    scores, asked = read_vqa(results.parent), read_answers(results.parent)
    found = {
        "accuracy": scores["accuracy"],
        "per_type": {kind: score["accuracy"] for kind, score in scores["per_type"].items()},
        "correct": bits(each["correct"] for each in asked),
        "scenes": [scene_of(each["id"]) for each in asked],
    }
    if scores["pretrained"]:
        found["pretrained"] = {
            "accuracy": scores["pretrained"]["accuracy"],
            "correct": bits(each["pretrained_correct"] for each in asked),
        }
    return found


def text_answers(results: Path) -> Json:
    """Answers without pictures: a `1` for every one that is right, of the model and of the pretrained one."""
    asked = read_answers(results.parent)
    return {
        "correct": bits(each["correct"] for each in asked),
        "pretrained": bits(each["pretrained_correct"] for each in asked),
    }


def running_text(results: Path) -> Json:
    """Running text, a figure a paragraph: KL to the pretrained model (nats a token), agreement, number of tokens."""
    lines = [line for line in read_jsonl(results.with_name("paragraphs.jsonl")) if line["tokens"]]
    return {name: [line[name] for line in lines] for name in ("kl", "agreement", "tokens")}


def swaps(output: Path) -> dict[str, dict[str, int]]:
    """Swapped instructions: task -> `pairs`, `followed`, `changed`."""
    return {
        probe.task: {"pairs": probe.pairs, "followed": probe.followed, "changed": probe.changed}
        for probe in read_swaps(output)
    }


def acted(output: Path) -> dict[str, Json]:
    """Questions that were acted on, by kind: a `1` for every one that the arm got right, the same of the VLM's words,
    and the share that each arm gets right which ignores them."""
    return {
        each.kind: {
            "acted": bits(each.acted),
            "answered": bits(each.answered),
            "ignoring": {name: float(np.mean(shares)) for name, shares in each.ignoring.items()},
        }
        for each in read_acted(output)
    }


def drift(output: Path) -> Json:
    """Mean relative drift of the activations, and the same of every decoder layer."""
    found = read_json(output)
    return {"drift": found["drift"], "per_layer": [layer["drift"] for layer in found["per_layer"]]}


def action_error(output: Path) -> Json:
    """Error of action chunks: its mean, that of each held-out episode, and of how many frames and draws that is."""
    found = read_json(output)
    by_episode: dict[int, list[float]] = defaultdict(list)
    for episode, error in zip(found["episode_of_error"], found["errors"], strict=True):
        by_episode[episode].append(error)
    return {
        "action_error": found["action_error"],
        "episode_errors": [round(float(np.mean(by_episode[episode])), 5) for episode in sorted(by_episode)],
        "episode_frames": [len(by_episode[episode]) for episode in sorted(by_episode)],
    }


def bits(flags: Iterable[Any]) -> str:
    """A `1` for what is true, else a `0`."""
    return "".join(str(int(flag)) for flag in flags)


def scene_of(question: str) -> int:
    """The number of the scene in the id of a question about a tabletop."""
    return int(question.split("/")[3])
