"""lmms-eval, in an environment of its own, scores what `aegis-export` writes."""

import json
import os
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from environments import new_environment
from PIL import Image
from tiny_vlms import save_tiny_vlm
from transformers import AutoModelForImageTextToText, AutoProcessor

_COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
_QUESTION = "which color?"
_SYSTEM = "You are a helpful assistant."
"""What lmms-eval says to Gemma 3 before every question."""
_TASK = """\
task: colours
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {parquet}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 8
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
_UTILS = 'def visual(doc):\n    return [doc["image"].convert("RGB")]\n'


def pictures() -> list[Image.Image]:
    return [Image.fromarray(np.full((32, 32, 3), colour, np.uint8)) for colour in _COLOURS.values()]


def teach(folder: Path, answers: list[str]) -> None:
    """Train a tiny Gemma 3, in place, until it says `answers` to the three pictures; it pads as the real one does."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.padding_side = "left"
    processor.save_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    talks = [
        [
            {"role": "system", "content": [{"type": "text", "text": _SYSTEM}]},
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": _QUESTION}],
            },
        ]
        for image in pictures()
    ]
    asked = [
        processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks
    ]
    end = processor.tokenizer.eos_token
    told = [text + answer + end for text, answer in zip(asked, answers, strict=True)]
    images = [[image] for image in pictures()]
    batch = processor(text=told, images=images, padding=True, return_tensors="pt")
    labels = torch.full_like(batch["input_ids"], -100)
    for row, answer in enumerate(answers):
        span = slice(-len(answer) - 1, None)  # a byte is a token; the last ends the answer
        labels[row, span] = batch["input_ids"][row, span]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(300):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.save_pretrained(folder)


@pytest.mark.slow
def test_an_export_is_scored(
    shell: Callable[..., subprocess.CompletedProcess[str]], tiny_dataset: Path, tmp_path: Path
) -> None:
    """Two of three answers are right, so the score shows that the weights and the pictures arrived."""
    programs = new_environment(
        tmp_path / "lmms",
        "lmms-eval==0.7.3",
        # filelock 4.3.1 has no longer what lmms-eval imports of it.
        *(f"{name}=={version(name)}" for name in ("torch", "transformers", "filelock")),
    )
    vlm = save_tiny_vlm("gemma3", tmp_path / "gemma3")
    teach(vlm, ["red", "green", "yellow"])
    small = ["expert_width=16", "expert_depth=2", "expert_heads=2", "chunk_size=4", "n_action_steps=2"]
    done = shell(
        "lerobot-train",
        "--policy.type=aegis",
        "--policy.protection=freeze",
        f"--policy.vlm={vlm}",
        "--policy.device=cpu",
        *(f"--policy.{each}" for each in small),
        "--dataset.repo_id=local/tiny",
        f"--dataset.root={tiny_dataset}",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
        f"--output_dir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    done = shell("aegis-export", f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'exported'}")
    assert done.returncode == 0, done.stderr[-3000:]

    rows = {"image": pictures(), "question": [_QUESTION] * 3, "answer": list(_COLOURS)}
    parquet = tmp_path / "colours.parquet"
    datasets.Dataset.from_dict(rows).to_parquet(parquet)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(_TASK.format(parquet=parquet))
    (tmp_path / "tasks" / "utils.py").write_text(_UTILS)
    done = shell(
        "env",
        f"PATH={programs}{os.pathsep}{os.environ['PATH']}",
        f"HF_HOME={tmp_path / 'hub'}",
        "lmms-eval",
        "--model=gemma3",
        f"--model_args=pretrained={tmp_path / 'exported'},device=cpu,device_map=cpu",
        "--tasks=colours",
        f"--include_path={tmp_path / 'tasks'}",
        "--batch_size=1",
        f"--output_path={tmp_path / 'scored'}",
        "--log_samples",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "scored").rglob("*_results.json")
    assert json.loads(results.read_text())["results"]["colours"]["exact_match,none"] == pytest.approx(2 / 3)
    (samples,) = (tmp_path / "scored").rglob("*_samples_colours.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().splitlines()]
    assert sorted(answers) == ["green", "red", "yellow"]
