"""Builds the real VLM: SmolLM2-135M learns to see the tabletop and keeps what it knows.

    python benchmarks/real_vlm/build.py --out=outputs/real-vlm/vlm

Three parts. First vision tower and projector alone learn to say what a picture shows in the language model's own word
embeddings (half an hour). Then everything learns to answer packed questions, under this package's own protection: an
anchor of English texts holds the leading directions of every linear layer's inputs, and nothing but the rest of them
moves. A model that was asked about pictures alone then answers any question in a word about solids, so at last it
learns, beside further pictures, to chat as it did before. Stopped, the same command goes on.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from covariances import Covariances
from language_model import build_vlm
from naming import SceneNaming
from own_chats import Chat, ChatLoss, own_chats
from packed_questions import AnswerLoss, Batches, Packed
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
    chat_steps: int = 150
    chat_lr: float = 2e-4
    chats: int = 600
    chats_at_once: int = 8
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


def main() -> None:
    """Entry point."""
    cli.run(BuildConfig, build)


def build(cfg: BuildConfig) -> None:
    """Train what is left to train, and save the model."""
    folder = cfg.out.with_name(f"{cfg.out.name}.training")
    folder.mkdir(parents=True, exist_ok=True)
    lesson = Lesson(build_vlm(), cfg, folder)
    lesson.words()
    lesson.answers()
    lesson.chats()
    lesson.vlm.save_pretrained(cfg.out)
    shutil.rmtree(folder)


class Lesson:
    """What the model learns, one part after the other.

    Args:
        vlm: the model.
        cfg: flags.
        folder: where an interrupted part is kept.
    """

    def __init__(self, vlm: VLMBackbone, cfg: BuildConfig, folder: Path) -> None:
        self.vlm, self.cfg, self.folder = vlm, cfg, folder
        places = {"out", "cache_dir", "eval_freq", "save_freq", "val_samples"}
        self.settings = {key: value for key, value in asdict(cfg).items() if key not in places}
        self.batches = Batches(vlm, scene_images("train", cfg.scenes, cfg.seed, cfg.cache_dir), cfg)
        self.validation = load_samples("tabletop", "val", cfg.val_samples, cfg.seed, cache_dir=cfg.cache_dir)
        vlm.train()
        vlm.requires_grad_(False)
        self.naming = SceneNaming(vlm)

    def words(self) -> None:
        """Vision tower and projector learn to name what lies there."""
        cfg = self.cfg
        self.naming.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.naming.parameters(), lr=cfg.vision_lr, weight_decay=0.0)
        seen = ("scenes", "vision_steps", "vision_batch_size", "vision_lr", "warmup_steps", "seed")
        its_own = {name: self.settings[name] for name in seen}
        self._learn(
            "words",
            self.naming,
            self.batches.words_at,
            Schedule(cfg.vision_lr, cfg.warmup_steps, cfg.vision_steps),
            optimizer,
            TrainingState(self.folder / "vision.safetensors", self.naming, [optimizer], its_own),
            save_freq=cfg.save_freq * 5,
        )

    def answers(self) -> None:
        """Everything learns to answer questions about pictures, while naming goes on."""
        cfg = self.cfg
        for layer in _decoder(self.vlm).values():
            layer.weight.requires_grad_(True)
        self._learn_protected(
            "aligning",
            AnswerLoss(self.vlm, self.naming),
            self.batches.at,
            Schedule(cfg.lr, cfg.warmup_steps, cfg.steps),
            "state",
        )

    def chats(self) -> None:
        """The language model learns beside further questions to chat as it did before any training."""
        cfg = self.cfg
        untrained = build_vlm().eval().requires_grad_(False)
        chats = own_chats(untrained, cfg.chats, cfg.seed, self.folder / "chats.json")
        self.naming.requires_grad_(False)

        def batch_at(step: int) -> tuple[Packed, list[Chat]]:
            drawn = np.random.default_rng([cfg.seed, 2, step]).choice(len(chats), cfg.chats_at_once)
            return self.batches.at(cfg.steps + step)[0], [chats[number] for number in drawn]

        self._learn_protected(
            "chatting",
            _AnswersAndChats(AnswerLoss(self.vlm, self.naming), ChatLoss(self.vlm, untrained)),
            batch_at,
            Schedule(cfg.chat_lr, cfg.warmup_steps, cfg.chat_steps),
            "chats",
        )

    def _learn_protected(
        self, title: str, module: nn.Module, batch_at: Callable[[int], Any], schedule: Schedule, name: str
    ) -> None:
        learning = _Learning(self.vlm, self.naming)
        blocks = text_blocks(self.vlm, self.cfg, self.folder / "texts.safetensors")
        optimizer = ProjectedAdamW(
            list(learning.parameters()),
            LowRankProjector(_decoder(self.vlm), blocks),
            lr=self.cfg.lr,
            betas=(0.9, 0.98),
            weight_decay=0.0,
        )
        state = TrainingState(self.folder / f"{name}.safetensors", learning, [optimizer], self.settings)
        self._learn(title, module, batch_at, schedule, optimizer, state, self.cfg.save_freq, self._validate)

    def _learn(
        self,
        title: str,
        module: nn.Module,
        batch_at: Callable[[int], Any],
        schedule: Schedule,
        optimizer: torch.optim.Optimizer,
        state: TrainingState,
        save_freq: int,
        after_step: Callable[[int, tqdm], None] | None = None,
    ) -> None:
        take_steps(
            title,
            module,
            batch_at,
            schedule,
            [optimizer],
            state,
            Accelerator(cpu=not torch.cuda.is_available()),
            begun=state.load() or (0, 0.0),
            save_freq=save_freq,
            after_step=after_step,
        )

    def _validate(self, done: int, bar: tqdm) -> None:
        if done % self.cfg.eval_freq == 0 or done == bar.total:
            self.vlm.eval()
            answers = answer_samples(self.vlm, self.validation, batch_size=50)
            scores = score_answers(self.validation, answers, blind=None)
            self.vlm.train()
            each = ", ".join(
                f"{kind} {score.accuracy:.0%}" for kind, score in sorted(scores.per_type.items())
            )
            print(f"step {done}: {scores.overall.accuracy:.1%} ({each})", flush=True)


class _AnswersAndChats(nn.Module):
    def __init__(self, answers: AnswerLoss, chats: ChatLoss) -> None:
        super().__init__()
        self.answers, self.chats = answers, chats

    def forward(self, packed: Packed, chats: list[Chat]) -> Tensor:
        return self.answers(packed) + self.chats(chats)


class _Learning(nn.Module):
    """What learns, for the state's file."""

    def __init__(self, vlm: VLMBackbone, naming: SceneNaming) -> None:
        super().__init__()
        self.decoder, self.naming = vlm.decoder_layers, naming

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        return ((name, p) for name, p in super().named_parameters(*args, **options) if p.requires_grad)


if __name__ == "__main__":
    main()
