"""`aegis-vqa`: what can this backbone still answer?

Asks a VLM, or the VLM inside a policy checkpoint, a benchmark's questions and scores the answers against a blind
baseline, where there is one, and, sample by sample, against the pretrained model.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState

from aegis_eval.answers.asking import AskedWithImage, answer_samples
from aegis_eval.answers.blind import MAX_BLIND_SCENES, BlindBaseline, blind_baseline
from aegis_eval.answers.lmms_eval import write_lmms_eval
from aegis_eval.answers.log import AnswerLog
from aegis_eval.answers.pretrained import PretrainedAnswers
from aegis_eval.answers.scoring import Score, format_table, score_answers
from aegis_eval.checkpoints import PolicySource, load_original_vlm, load_policy
from aegis_eval.devices import torch_device
from aegis_eval.questions.public import (
    CUSTOM,
    PUBLIC,
    PublicSample,
    load_public,
    reported_split,
    yes_no_figures,
)
from aegis_eval.questions.tabletop import (
    BENCHMARKS,
    fingerprint,
    load_samples,
)
from aegis_eval.results.provenance import provenance
from aegis_policy.checkpoint.card import VQAScore, add_score
from aegis_policy.support import cli, ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_directory, require_new_directory
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.loading import check_vlm

_LONGEST_WAIT = timedelta(hours=12)


@dataclass
class QuestionSource:
    """Where the questions of a public benchmark, or one's own, are.

    Attributes:
        path: `--vqa.path`, the folder with the official files and images, or a folder or hub id that the `datasets`
            library reads; by default the hub's copy that lmms-eval reads.
    """

    path: str | None = None


@dataclass
class VqaConfig:
    """Flags of `aegis-vqa`; exactly one of `--policy.path` and `--vlm` is given.

    Attributes:
        policy: `--policy.path`, a policy checkpoint (a `pretrained_model` folder).
        vlm: a transformers directory, a hub id, or `embedded`.
        pretrained: the VLM to compare with, by default the one the policy was made from.
        pretrained_answers: the output folder of an `aegis-vqa --vlm=` that asked that VLM the same questions, which
            is then not asked again.
        benchmark: which questions: `tabletop`, `tabletop_composed`, `tabletop_robot`; `vqav2`, `okvqa`, `textvqa`,
            `gqa`, `pope`; or `custom` for one's own.
        vqa: `--vqa.path`, for the last two kinds.
        split: of the benchmark, by default the one whose accuracy is reported.
        samples: number of questions, or as many as there are.
        seed: another seed asks about other images.
        batch_size: questions at a time.
        max_new_tokens: longest answer.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        output_dir: a new folder for `results.json` and `samples.jsonl`, by default `outputs/vqa/DATE_NAME`. An
            interrupted command that named it goes on where it was, when given again with the same model, questions,
            batch size and longest answer.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    policy: PolicySource = field(default_factory=PolicySource)
    vlm: str | None = None
    pretrained: str | None = None
    pretrained_answers: Path | None = None
    benchmark: str = "tabletop"
    vqa: QuestionSource = field(default_factory=QuestionSource)
    split: str | None = None
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
    started, date = time.monotonic(), datetime.now().astimezone()
    cli.require_at_least(config, samples=1, batch_size=1, max_new_tokens=1, seed=0)
    if "WORLD_SIZE" in os.environ:
        # Joins the other ranks, on this one's device; they wait while the first fetches the questions.
        PartialState(cpu=config.device == "cpu", timeout=_LONGEST_WAIT)
    output_dir = _output_directory(config, date)
    torch_device(config.device)
    _check_pretrained(config)
    asked = ranks.first_alone(lambda: _questions(config))
    vlm, policy_config, checkpoint = _asked_model(config)
    model = str(config.policy.path or config.vlm)
    before, note = None, ""
    if config.pretrained_answers is not None:
        before = PretrainedAnswers.read(
            config.pretrained_answers,
            asked.samples,
            policy_config,
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
        )
    answers = _answers_of(vlm, model, "answering", asked.samples, config)
    fingerprint_of_asked = vlm.fingerprint()
    del vlm  # there may be no room for two
    if before is None:
        before, note = _ask_pretrained(config, policy_config, asked.samples)
    if ranks.index() > 0:
        return output_dir
    reference_answers = before.answers if before is not None else None
    scores = score_answers(asked.samples, answers, asked.blind, reference_answers)
    yes_no = yes_no_figures(asked.public, answers) if config.benchmark == "pope" else {}
    seconds = time.monotonic() - started
    results = {
        "model": model,
        "vlm_fingerprint": fingerprint_of_asked,
        "benchmark": config.benchmark,
        "split": asked.split,
        "pretrained_model": before.name if before is not None else None,
        **scores.to_dict(),
        **({"yes_no": yes_no} if yes_no else {}),
        "provenance": provenance(
            config.seed,
            seconds,
            benchmark_fingerprint=fingerprint(asked.samples),
            config=_plain(config),
        ),
    }
    with atomic_directory(output_dir) as beside:
        (beside / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        _write_samples(beside / "samples.jsonl", asked.samples, answers, reference_answers)
        if asked.public:
            write_lmms_eval(
                beside / "lmms_eval",
                PUBLIC[config.benchmark].task if config.benchmark in PUBLIC else config.benchmark,
                model,
                asked.public,
                answers,
                date=f"{date:%Y-%m-%dT%H-%M-%S}",
                seconds=seconds,
                of=asked.total,
                yes_no=yes_no.get("all"),
            )
    shutil.rmtree(_log_folder(output_dir), ignore_errors=True)
    if checkpoint is not None:
        place = f" in {Path(config.vqa.path).name}" if config.vqa.path else ""
        _note_on_card(checkpoint, f"{config.benchmark}{place}, {asked.split}", scores.overall, config)
    print(format_table(scores))
    for kind, figures in yes_no.items():
        print(f"{kind}: " + ", ".join(f"{name} {100 * value:.1f} %" for name, value in figures.items()))
    if note:
        print(note)
    print(f"wrote {output_dir / 'results.json'} and {output_dir / 'samples.jsonl'}")
    return output_dir


@dataclass(frozen=True)
class _Questions:
    """`public` are those of `samples` that have an official score: all or none; `total` is how many there are."""

    samples: Sequence[AskedWithImage]
    split: str
    blind: BlindBaseline | None = None
    public: Sequence[PublicSample] = ()
    total: int = 0


def _questions(config: VqaConfig) -> _Questions:
    name = config.benchmark
    if name in PUBLIC or name == CUSTOM:
        split = config.split or reported_split(name)
        public, total = load_public(name, config.vqa.path, split, config.samples, config.seed)
        return _Questions(public, split, public=public, total=total)
    if name not in BENCHMARKS:
        known = ", ".join((*BENCHMARKS, *PUBLIC, CUSTOM))
        raise AegisError(f"--benchmark={name} is not known: choose from {known}.")
    if config.vqa.path is not None:
        raise AegisError(f"--vqa.path goes with public benchmarks and {CUSTOM}, not with --benchmark={name}.")
    split = config.split or "test"
    samples = load_samples(name, split, config.samples, config.seed, cache_dir=config.cache_dir)
    scenes = min(MAX_BLIND_SCENES, max(40, config.samples))
    return _Questions(samples, split, blind_baseline(name, scenes, cache_dir=config.cache_dir))


def _answers_of(
    vlm: VLMBackbone, weights: str, role: str, samples: Sequence[AskedWithImage], config: VqaConfig
) -> list[str]:
    """The answers of a model, resumed if the output folder has a name that the next command can give again.

    `weights` is the folder, if it is one, that the model was read from.
    """
    log = None
    if config.output_dir is not None:
        about = {
            "model": [vlm.fingerprint(), str(vlm.model.dtype), *_weights(weights)],
            "questions": fingerprint(samples),
            "batch_size": config.batch_size,
            "max_new_tokens": config.max_new_tokens,
        }
        log = AnswerLog(_log_folder(config.output_dir) / role, about, ranks.index())
    return answer_samples(
        vlm, samples, config.batch_size, config.max_new_tokens, role, log, across_ranks=True
    )


def _weights(folder: str) -> list[str]:
    """What tells weights that were written anew from those that were there."""
    files = sorted(Path(folder).resolve().glob("*.safetensors"))
    return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]


def _log_folder(output_dir: Path) -> Path:
    """Beside the results, which only exist once they are whole."""
    return output_dir.with_name(f".{output_dir.name}.answers")


def _output_directory(config: VqaConfig, date: datetime) -> Path:
    if config.output_dir is not None:
        return require_new_directory(config.output_dir, "--output_dir")
    folder = Path(config.policy.path or config.vlm or "vlm").resolve()
    name = folder.parent.name if folder.name == "pretrained_model" else folder.name
    return require_new_directory(Path("outputs") / "vqa" / f"{date:%Y-%m-%d_%H-%M-%S}_{name}", "--output_dir")


def _asked_model(config: VqaConfig) -> tuple[VLMBackbone, Any, Path | None]:
    """The model to ask and, if it is in a policy, the policy's configuration and folder."""
    if (config.policy.path is None) == (config.vlm is None):
        raise AegisError(
            "give exactly one of --policy.path (a checkpoint) and --vlm (a model to ask as it is)."
        )
    if config.vlm is not None:
        vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm")
        return vlm.to(torch_device(config.device)), None, None
    policy, folder = load_policy(config.policy)
    return policy.vlm.to(torch_device(config.device)), policy.config, Path(folder)


def _ask_pretrained(
    config: VqaConfig, policy_config: Any, samples: Sequence[AskedWithImage]
) -> tuple[PretrainedAnswers | None, str]:
    """Its answers, or None and a sentence why it cannot be asked."""
    vlm, note = load_original_vlm(policy_config, config.pretrained)
    if vlm is None:
        return None, note
    vlm.to(torch_device(config.device))
    return PretrainedAnswers(vlm.name, _answers_of(vlm, vlm.name, "pretrained", samples, config)), note


def _check_pretrained(config: VqaConfig) -> None:
    """Find out before the work that there is nothing to compare with; weights are loaded only when needed."""
    answers = config.pretrained_answers
    if answers is not None and not (answers / "results.json").is_file():
        raise AegisError(
            f"--pretrained_answers={answers} holds no results.json: name the output of an aegis-vqa."
        )
    if config.pretrained is not None:
        if answers is not None:
            raise AegisError("give at most one of --pretrained and --pretrained_answers.")
        check_vlm(config.pretrained, "--pretrained")


def _note_on_card(checkpoint: Path, questions: str, score: Score, config: VqaConfig) -> None:
    """Leave the score in the checkpoint's model card, if it can be written; `before` is the model it was made from."""
    before, change = None, None
    if score.pretrained is not None and config.pretrained is None:
        before, paired = score.pretrained.accuracy, score.pretrained.paired
        change = (paired.difference, *paired.ci)
    try:
        add_score(checkpoint, VQAScore(questions, score.n, score.accuracy, before, change))
    except OSError as error:
        print(f"The score was not added to the card of {checkpoint} ({error.strerror}).")


def _write_samples(
    path: Path,
    samples: Sequence[AskedWithImage],
    answers: Sequence[str],
    reference_answers: Sequence[str] | None,
) -> None:
    """A line a question; an answer counts as correct there if it is at least half right."""
    with path.open("w") as lines:
        for index, (sample, given) in enumerate(zip(samples, answers, strict=True)):
            record = {
                "id": sample.id,
                "type": sample.type,
                "question": sample.question,
                "answer": sample.answer,
                "given": given,
                "score": sample.score(given),
                "correct": sample.score(given) >= 0.5,
            }
            if reference_answers is not None:
                before = reference_answers[index]
                record |= {
                    "pretrained": before,
                    "pretrained_score": sample.score(before),
                    "pretrained_correct": sample.score(before) >= 0.5,
                }
            lines.write(json.dumps(record) + "\n")


def _plain(config: VqaConfig) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(config).items()}


if __name__ == "__main__":
    main()
