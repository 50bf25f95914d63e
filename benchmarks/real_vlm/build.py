"""Builds the real VLM: SmolLM2-135M learns to see the tabletop and keeps what it knows.

    python benchmarks/real_vlm/build.py --out=outputs/real-vlm/vlm

Two parts. First vision tower and projector alone learn to say what a picture shows in the language model's own word
embeddings (half an hour). Then everything learns to answer packed questions, under this package's own protection: an
anchor of English texts holds the leading directions of every linear layer's inputs, and nothing but the rest of them
moves. Stopped, the same command goes on.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from covariances import Covariances
from language_model import build_vlm
from naming import SceneNaming
from packed_questions import AnswerLoss, Batches
from safetensors.torch import load_file, save_file
from texts import passages
from torch import Tensor, nn
from tqdm import tqdm

from aegis_eval.answers.asking import answer_samples
from aegis_eval.answers.scoring import score_answers
from aegis_eval.pretraining.optimizers import Schedule
from aegis_eval.pretraining.state import TrainingState
from aegis_eval.pretraining.steps import take_steps
from aegis_eval.questions.store import default_cache_dir, scene_images
from aegis_eval.questions.tabletop import load_samples
from aegis_policy.isolation import LowRankProjector, ProjectedAdamW
from aegis_policy.support import cli
from aegis_policy.support.files import atomic_write
from aegis_policy.vlm.backbone import VLMBackbone


@dataclass
class BuildConfig:
    """Flags."""

    out: Path = Path("outputs/real-vlm/vlm")
    scenes: int = 40_000
    vision_steps: int = 5_000
    vision_batch_size: int = 64
    vision_lr: float = 2e-3
    steps: int = 1_200
    batch_size: int = 4
    questions: int = 8
    lr: float = 3e-4
    warmup_steps: int = 50
    share: float = 0.17
    """Of each decoder layer's input directions, which stay as they are."""
    texts: int = 100
    seed: int = 0
    eval_freq: int = 250
    save_freq: int = 50
    val_samples: int = 300
    cache_dir: Path = field(default_factory=default_cache_dir)


def text_blocks(vlm: VLMBackbone, cfg: BuildConfig, kept: Path) -> dict[str, Tensor]:
    """The leading input directions of every decoder layer over English texts, plain ones and in a user's turn."""
    layers = _decoder(vlm)
    counts = {name: int(cfg.share * layer.in_features) for name, layer in layers.items()}
    if not kept.is_file():
        covariances = Covariances(layers)
        tokenizer = vlm.processor.tokenizer
        with torch.no_grad(), covariances.collect():
            for index, text in enumerate(tqdm(passages(cfg.texts, "anchor"), desc="texts")):
                if index % 2:
                    asked, _, rest = text.partition("\n")
                    text = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{rest}"
                ids = tokenizer(
                    text, add_special_tokens=False, return_tensors="pt", truncation=True, max_length=400
                )
                vlm.model.model.text_model(input_ids=ids["input_ids"], use_cache=False)
        leading = {
            name: torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, : counts[name]].float().contiguous()
            for name, covariance in tqdm(covariances.raw.items(), desc="eigenvectors")
        }
        with atomic_write(kept) as beside:
            save_file(leading, beside)
    return load_file(kept)


def _decoder(vlm: VLMBackbone) -> dict[str, nn.Linear]:
    prefix = vlm.family.decoder_layers
    return {name: layer for name, layer in vlm.linear_layers.items() if name.startswith(prefix)}


def _optimizer(vlm: VLMBackbone, naming: SceneNaming, cfg: BuildConfig, folder: Path) -> ProjectedAdamW:
    layers = _decoder(vlm)
    projector = LowRankProjector(layers, text_blocks(vlm, cfg, folder / "texts.safetensors"))
    return ProjectedAdamW(
        [*(layer.weight for layer in layers.values()), *naming.parameters()],
        projector,
        lr=cfg.lr,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )


def main() -> None:
    """Entry point."""
    cli.run(BuildConfig, build)


def build(cfg: BuildConfig) -> None:
    """Train what is left to train, and save the model."""
    folder = cfg.out.with_name(f"{cfg.out.name}.training")
    folder.mkdir(parents=True, exist_ok=True)
    places = {"out", "cache_dir", "eval_freq", "save_freq", "val_samples"}
    settings = {key: value for key, value in asdict(cfg).items() if key not in places}
    scenes = scene_images("train", cfg.scenes, cfg.seed, cfg.cache_dir)
    validation = load_samples("tabletop", "val", cfg.val_samples, cfg.seed, cache_dir=cfg.cache_dir)
    vlm = build_vlm()
    batches = Batches(vlm, scenes, cfg)
    vlm.train()
    vlm.requires_grad_(False)
    naming = _learn_words(vlm, batches, cfg, folder, settings)
    for layer in _decoder(vlm).values():
        layer.weight.requires_grad_(True)
    optimizer = _optimizer(vlm, naming, cfg, folder)
    learning = _Learning(vlm, naming)
    state = TrainingState(folder / "state.safetensors", learning, [optimizer], settings)

    def validate(done: int, bar: tqdm) -> None:
        if done % cfg.eval_freq == 0 or done == cfg.steps:
            vlm.eval()
            scores = score_answers(validation, answer_samples(vlm, validation, batch_size=50), blind=None)
            vlm.train()
            each = ", ".join(
                f"{kind} {score.accuracy:.0%}" for kind, score in sorted(scores.per_type.items())
            )
            print(f"step {done}: {scores.overall.accuracy:.1%} ({each})", flush=True)

    take_steps(
        "aligning",
        AnswerLoss(vlm, naming),
        batches.at,
        Schedule(cfg.lr, cfg.warmup_steps, cfg.steps),
        [optimizer],
        state,
        Accelerator(cpu=not torch.cuda.is_available()),
        begun=state.load() or (0, 0.0),
        save_freq=cfg.save_freq,
        after_step=validate,
    )
    vlm.save_pretrained(cfg.out)
    shutil.rmtree(folder)


class _Learning(nn.Module):
    """What learns, for the state's file."""

    def __init__(self, vlm: VLMBackbone, naming: SceneNaming) -> None:
        super().__init__()
        self.decoder, self.naming = vlm.decoder_layers, naming

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        return ((name, p) for name, p in super().named_parameters(*args, **options) if p.requires_grad)


def _learn_words(
    vlm: VLMBackbone, batches: Batches, cfg: BuildConfig, folder: Path, settings: dict[str, Any]
) -> SceneNaming:
    vlm.vision_tower.requires_grad_(True)
    vlm.projector.requires_grad_(True)
    naming = SceneNaming(vlm)
    optimizer = torch.optim.AdamW(naming.parameters(), lr=cfg.vision_lr, weight_decay=0.0)
    seen = ("scenes", "vision_steps", "vision_batch_size", "vision_lr", "warmup_steps", "seed")
    its_own = {name: settings[name] for name in seen}
    state = TrainingState(folder / "vision.safetensors", naming, [optimizer], its_own)
    take_steps(
        "words",
        naming,
        batches.words_at,
        Schedule(cfg.vision_lr, cfg.warmup_steps, cfg.vision_steps),
        [optimizer],
        state,
        Accelerator(cpu=not torch.cuda.is_available()),
        begun=state.load() or (0, 0.0),
        save_freq=cfg.save_freq * 5,
    )
    return naming


if __name__ == "__main__":
    main()
