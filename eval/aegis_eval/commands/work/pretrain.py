"""The work of `aegis-pretrain`: a warm-up of the vision side, then training to answer.

A PaliGemma-2-shaped model with random weights learns to answer by cross-entropy on answer tokens only. Most steps
pack many questions behind one image (`aegis_eval.pretraining.packing`); every fourth step and the last part of the
schedule use the model's own prompt path with one question an image, which is how it is asked afterwards.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from aegis_envs.tabletop.tasks import TASKS
from aegis_eval.answers.asking import answer_samples
from aegis_eval.answers.blind import blind_baseline
from aegis_eval.answers.scoring import Scores, format_table, score_answers
from aegis_eval.commands.pretrain import PretrainConfig
from aegis_eval.experiments.variants import SHARES
from aegis_eval.pretraining.answer_loss import AnswerLoss
from aegis_eval.pretraining.batches import QuestionBatches
from aegis_eval.pretraining.card import model_card
from aegis_eval.pretraining.optimizers import Schedule, build_optimizers
from aegis_eval.pretraining.state import TrainingState
from aegis_eval.pretraining.steps import take_steps
from aegis_eval.pretraining.vision_warmup import PatchNamer
from aegis_eval.questions.sample import Sample
from aegis_eval.questions.store import default_cache_dir, scene_images
from aegis_eval.questions.tabletop import TABLETOP, load_samples
from aegis_eval.questions.templated import all_words
from aegis_eval.results.provenance import provenance
from aegis_policy.anchors.building import build_anchor
from aegis_policy.checkpoint.card import CARD_FILE
from aegis_policy.support import cli, ranks
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import alone, atomic_directory, require_new_directory
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.small import build_small_vlm
from aegis_policy.vqa.examples import VQAExample

_TRANSFER = ("tabletop_robot", "tabletop_composed")
"""Benchmarks of the model card that show how far what was learned carries."""
_KINDS = ("gaussian", "subspace")
"""What the model's own anchor holds: all that experiments compare."""


def pretrain(cfg: PretrainConfig) -> None:
    """Train and save the embedded VLM.

    Raises:
        AegisError: `--out` already holds a model, a number cannot be, or the saved state belongs to other settings.
    """
    _check(cfg)
    accelerator = Accelerator(mixed_precision=cfg.mixed_precision, cpu=not torch.cuda.is_available())
    ranks.keep_group()
    with alone(cfg.out, "--out") if accelerator.is_main_process else nullcontext():
        if (cfg.out / CARD_FILE).is_file():
            _forget_training(cfg.out)  # which has ended
        require_new_directory(cfg.out, "--out")
        _pretrain(cfg, accelerator)
    accelerator.end_training()


def _pretrain(cfg: PretrainConfig, accelerator: Accelerator) -> None:
    with accelerator.main_process_first():
        scenes = scene_images("train", cfg.scenes, cfg.seed, cfg.cache_dir or default_cache_dir())
        validation = load_samples("tabletop", "val", cfg.val_samples, cfg.seed, cache_dir=cfg.cache_dir)
    vlm = build_small_vlm(vocabulary(), cfg.size, cfg.seed, name=str(cfg.out))
    batches = QuestionBatches(
        scenes,
        vlm,
        steps=cfg.steps,
        batch_size=cfg.batch_size,
        questions=cfg.questions,
        seed=cfg.seed,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
    seconds = _train(vlm, batches, validation, cfg, accelerator)
    if accelerator.is_main_process:
        finish(vlm, cfg, seconds)
        _forget_training(cfg.out)


def _train(
    vlm: VLMBackbone,
    batches: QuestionBatches,
    validation: Sequence[Sample],
    cfg: PretrainConfig,
    accelerator: Accelerator,
) -> float:
    """Warm up, then learn to answer, each from where it was left; returns the seconds that took."""
    module = AnswerLoss(vlm)
    optimizers = build_optimizers(vlm.model, cfg.lr, cfg.weight_decay)
    state = TrainingState(_state_path(cfg.out), vlm.model, optimizers, _settings(cfg))
    begun = state.load()
    if begun is None:
        begun = 0, _warm_up_vision(vlm, batches, cfg, accelerator)
        if accelerator.is_main_process:
            state.save(*begun)
    vlm.train()

    def validate(done: int, bar: tqdm) -> None:
        if done % cfg.eval_freq == 0 or done == cfg.steps:
            bar.write(f"step {done}: validation accuracy {_validate(vlm, validation)}")

    return take_steps(
        "aegis-pretrain",
        module,
        batches.at,
        Schedule(cfg.lr, cfg.warmup_steps, cfg.steps),
        optimizers,
        state,
        accelerator,
        begun=begun,
        save_freq=cfg.save_freq,
        after_step=validate,
    )


def _warm_up_vision(
    vlm: VLMBackbone, batches: QuestionBatches, cfg: PretrainConfig, accelerator: Accelerator
) -> float:
    """Train vision tower and projector, interruptible like the rest; returns the seconds that took."""
    vlm.train()
    torch.manual_seed(cfg.seed)
    namer = PatchNamer(vlm)
    optimizers = build_optimizers(namer, cfg.lr, cfg.weight_decay)
    state = TrainingState(
        _state_path(cfg.out).with_name("vision.safetensors"), namer, optimizers, _settings(cfg)
    )
    return take_steps(
        "vision warm-up",
        namer,
        batches.patches_at,
        Schedule(cfg.lr, cfg.warmup_steps, cfg.vision_steps),
        optimizers,
        state,
        accelerator,
        begun=state.load() or (0, 0.0),
        save_freq=cfg.save_freq,
    )


def _check(cfg: PretrainConfig) -> None:
    counts = [name for name, value in asdict(cfg).items() if isinstance(value, int)]
    cli.require_at_least(cfg, **{**dict.fromkeys(counts, 1), "vision_steps": 0, "warmup_steps": 0, "seed": 0})
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if not processes <= cfg.batch_size <= cfg.scenes:
        raise AegisError(
            f"--batch_size={cfg.batch_size} must give each of {processes} processes an image, and not exceed "
            f"--scenes={cfg.scenes}."
        )
    if cfg.mixed_precision not in ("no", "bf16"):
        raise AegisError(f"--mixed_precision={cfg.mixed_precision} is unknown: choose no or bf16.")


def vocabulary() -> list[str]:
    """The words of all questions, answers and instructions."""
    phrasings = [text.format(target="", zone="") for task in TASKS.values() for text in task.phrasings]
    return all_words([*phrasings, "answer en"])


def _settings(cfg: PretrainConfig) -> dict[str, object]:
    """What must not change between the parts of one training."""
    places = {"out", "cache_dir", "eval_freq", "save_freq", "val_samples"}
    places |= {"card_samples", "transfer_samples", "anchor_samples"}
    return {key: value for key, value in asdict(cfg).items() if key not in places}


def _state_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.training") / "state.safetensors"


def _forget_training(out: Path) -> None:
    shutil.rmtree(_state_path(out).parent, ignore_errors=True)


def _validate(vlm: VLMBackbone, samples: Sequence[Sample]) -> str:
    """Exact-match accuracy through the model's own `generate`, overall and by question type."""
    scores = score_answers(samples, answer_samples(vlm, samples, batch_size=100), blind=None)
    by_type = ", ".join(f"{kind} {score.accuracy:.0%}" for kind, score in sorted(scores.per_type.items()))
    return f"{scores.overall.accuracy:.1%} ({by_type})"


def finish(vlm: VLMBackbone, cfg: PretrainConfig, seconds: float) -> None:
    """Write the trained model to `cfg.out` with its anchor and its card, whole or not at all."""
    with atomic_directory(cfg.out) as beside:
        vlm.model.to(torch.bfloat16)
        vlm.save_pretrained(beside)
        saved = VLMBackbone.from_pretrained(beside).to(vlm.device)
        saved.name = cfg.out.name
        questions = load_samples("tabletop", "train", cfg.anchor_samples, cfg.seed, cache_dir=cfg.cache_dir)
        examples = (VQAExample(sample.image, sample.question) for sample in questions)
        build_anchor(
            saved,
            examples,
            kinds=_KINDS,
            share=max(SHARES),
            source="tabletop",
            batch_size=32,
            total=len(questions),
            seed=cfg.seed,
        ).save(beside / "anchor.safetensors")
        scores = {
            name: _score(saved, name, count, cfg)
            for name, count in [
                ("tabletop", cfg.card_samples),
                *((transfer, cfg.transfer_samples) for transfer in _TRANSFER),
            ]
        }
        card = model_card(
            scores,
            split="test",
            parameters=sum(parameter.numel() for parameter in saved.parameters()),
            settings=_settings(cfg),
            seconds=seconds,
            provenance=provenance(cfg.seed, seconds),
            anchor_samples=len(questions),
        )
        (beside / CARD_FILE).write_text(card)
    for name, score in scores.items():
        print(f"\n{name}\n{format_table(score)}")
    print(f"wrote {cfg.out}: model, tokenizer, processor, anchor.safetensors, README.md")


def _score(vlm: VLMBackbone, benchmark: str, count: int, cfg: PretrainConfig) -> Scores:
    """Accuracy on a benchmark's test split, beside its blind baseline."""
    samples = load_samples(benchmark, "test", count, cfg.seed, cache_dir=cfg.cache_dir)
    answers = answer_samples(vlm, samples, batch_size=100, description=f"scoring {benchmark}")
    return score_answers(
        samples, answers, blind_baseline(TABLETOP[benchmark], count, cache_dir=cfg.cache_dir)
    )
