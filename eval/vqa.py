"""`aegis-vqa`: what can this backbone still answer?

Asks a VLM, or the VLM inside a policy checkpoint, a benchmark's questions and scores the answers against the
blind baseline and, sample by sample, against the pretrained model.
"""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aegis_eval.benchmarks import MAX_BLIND_SCENES, Sample, blind_baseline, fingerprint, load_samples
from aegis_eval.checkpoints import PolicySource, load_original_vlm, load_policy
from aegis_eval.devices import torch_device
from aegis_eval.provenance import provenance
from aegis_eval.retention import format_table, score_answers
from aegis_policy import cli
from aegis_policy.errors import AegisError
from aegis_policy.files import atomic_directory, require_new_directory
from aegis_policy.vlm import VLMBackbone
from aegis_policy.vlm_loading import check_vlm
from aegis_policy.vqa_data import exact_match


@dataclass
class VqaConfig:
    """Flags of `aegis-vqa`; exactly one of `--policy.path` and `--vlm` is given.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        vlm: a transformers directory, a hub id, or `embedded`.
        pretrained: the VLM to compare with, by default the one the policy was made from.
        benchmark: which questions.
        split: of the benchmark.
        samples: number of questions.
        seed: another seed asks about other images.
        batch_size: questions at a time.
        max_new_tokens: longest answer.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        output_dir: a new folder for `results.json` and `samples.jsonl`, by default `outputs/vqa/DATE_NAME`.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    vlm: str | None = None
    pretrained: str | None = None
    benchmark: str = "tabletop"
    split: str = "test"
    samples: int = 1200
    seed: int = 0
    batch_size: int = 32
    max_new_tokens: int = 8
    device: str | None = None
    output_dir: Path | None = None
    cache_dir: Path | None = None


def main() -> None:
    """Entry point of `aegis-vqa`."""
    cli.run(VqaConfig, evaluate)


def evaluate(config: VqaConfig) -> Path:
    """Ask, score, print the table, and return the folder with `results.json` and `samples.jsonl`.

    Raises:
        AegisError: flags that do not name one usable model, benchmark and free output folder.
    """
    started = time.monotonic()
    cli.require_at_least(config, batch_size=1, max_new_tokens=1, seed=0)
    output_dir = _output_directory(config)
    torch_device(config.device)
    _check_pretrained(config)
    vlm, policy_config = _asked_model(config)
    samples = load_samples(
        config.benchmark, config.split, config.samples, config.seed, cache_dir=config.cache_dir
    )
    blind = blind_baseline(
        config.benchmark, min(MAX_BLIND_SCENES, max(40, config.samples)), cache_dir=config.cache_dir
    )
    answers = answer_samples(vlm, samples, config.batch_size, config.max_new_tokens, "answering")
    del vlm
    reference, note = load_original_vlm(policy_config, config.pretrained)
    reference_answers = None
    if reference is not None:
        reference.to(torch_device(config.device))
        reference_answers = answer_samples(
            reference, samples, config.batch_size, config.max_new_tokens, "pretrained"
        )
    scores = score_answers(samples, answers, blind, reference_answers)
    results = {
        "model": config.policy.path or config.vlm,
        "benchmark": config.benchmark,
        "split": config.split,
        "pretrained_model": reference.name if reference is not None else None,
        **scores.to_dict(),
        "provenance": provenance(
            config.seed,
            time.monotonic() - started,
            benchmark_fingerprint=fingerprint(samples),
            config=_plain(config),
        ),
    }
    _write(output_dir, results, samples, answers, reference_answers)
    print(format_table(scores))
    if note:
        print(note)
    print(f"wrote {output_dir / 'results.json'} and {output_dir / 'samples.jsonl'}")
    return output_dir


def answer_samples(
    vlm: VLMBackbone,
    samples: Sequence[Sample],
    batch_size: int = 32,
    max_new_tokens: int = 8,
    description: str | None = None,
) -> list[str]:
    """One answer a sample, in order; questions of similar length share a batch.

    `description` names the progress bar; without it there is none.
    """
    order = sorted(range(len(samples)), key=lambda i: (samples[i].type, len(samples[i].question)))
    answers = [""] * len(samples)
    bar = tqdm(total=len(samples), desc=description, unit="question") if description else nullcontext()
    with bar as progress:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [samples[i] for i in chosen]
            given = vlm.answer(
                [sample.image for sample in batch],
                [sample.question for sample in batch],
                max_new_tokens=max_new_tokens,
            )
            for i, text in zip(chosen, given, strict=True):
                answers[i] = text
            if progress is not None:
                progress.update(len(batch))
    return answers


def _output_directory(config: VqaConfig) -> Path:
    if config.output_dir is not None:
        return require_new_directory(config.output_dir, "--output_dir")
    folder = Path(config.policy.path or config.vlm or "vlm").resolve()
    name = folder.parent.name if folder.name == "pretrained_model" else folder.name
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    return require_new_directory(Path("outputs") / "vqa" / f"{stamp}_{name}", "--output_dir")


def _asked_model(config: VqaConfig) -> tuple[VLMBackbone, Any]:
    """The model to ask and, if it is in a policy, the policy's configuration."""
    if (config.policy.path is None) == (config.vlm is None):
        raise AegisError(
            "give exactly one of --policy.path (a checkpoint) and --vlm (a model to ask as it is)."
        )
    if config.vlm is not None:
        vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm")
        return vlm.to(torch_device(config.device)), None
    policy, _ = load_policy(config.policy)
    return policy.vlm.to(torch_device(config.device)), policy.config


def _check_pretrained(config: VqaConfig) -> None:
    """Find out before the work that `--pretrained` names no model; its weights are loaded only when needed."""
    if config.pretrained is not None:
        check_vlm(config.pretrained, "--pretrained")


def _write(
    output_dir: Path,
    results: dict[str, Any],
    samples: Sequence[Sample],
    answers: Sequence[str],
    reference_answers: Sequence[str] | None,
) -> None:
    with atomic_directory(output_dir) as beside:
        (beside / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        with (beside / "samples.jsonl").open("w") as lines:
            for index, (sample, given) in enumerate(zip(samples, answers, strict=True)):
                record = {
                    "id": sample.id,
                    "type": sample.type,
                    "question": sample.question,
                    "answer": sample.answer,
                    "given": given,
                    "correct": exact_match(given, sample.answer),
                }
                if reference_answers is not None:
                    record["pretrained"] = reference_answers[index]
                    record["pretrained_correct"] = exact_match(reference_answers[index], sample.answer)
                lines.write(json.dumps(record) + "\n")


def _plain(config: VqaConfig) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


if __name__ == "__main__":
    main()
