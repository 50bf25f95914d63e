"""Builds the real VLM: SmolLM2-135M learns to see the tabletop and keeps what it knows.

    python benchmarks/real_vlm/build.py --out=outputs/real-vlm/vlm

Two parts. First vision tower and projector alone learn to say, in the language model's own word embeddings, what lies
under each image token (minutes). Then everything learns to answer packed questions, under this package's own
protection: an anchor of English texts holds the leading directions of every linear layer's inputs, and nothing but the
rest of them moves. Stopped, the same command goes on.
"""

import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from covariances import Covariances
from language_model import build_vlm
from safetensors.torch import load_file, save_file
from texts import passages
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from aegis_envs.tabletop.scene import COLORS, SHAPES
from aegis_eval.answers.asking import answer_samples
from aegis_eval.answers.scoring import score_answers
from aegis_eval.pretraining.optimizers import Schedule
from aegis_eval.pretraining.state import TrainingState
from aegis_eval.pretraining.steps import take_steps
from aegis_eval.questions.images import SceneImage
from aegis_eval.questions.store import SceneImages, default_cache_dir, scene_images
from aegis_eval.questions.tabletop import load_samples
from aegis_eval.questions.templated import TYPES, ask
from aegis_policy.isolation import LowRankProjector, ProjectedAdamW
from aegis_policy.support import cli
from aegis_policy.support.files import atomic_write
from aegis_policy.vlm.backbone import VLMBackbone

_COLORS, _SHAPES = list(COLORS), list(SHAPES)
_ASKED = (*TYPES, "relation", "relation", "count", "extreme", "where")
"""What takes longest to learn comes up most."""
_SHORT = "\nAnswer the question using a single word or phrase."


@dataclass
class BuildConfig:
    """Flags."""

    out: Path = Path("outputs/real-vlm/vlm")
    scenes: int = 20_000
    vision_steps: int = 1_500
    vision_batch_size: int = 64
    vision_lr: float = 1e-3
    steps: int = 1_500
    batch_size: int = 8
    questions: int = 8
    lr: float = 3e-4
    """Of the decoder; the vision side learns at three times that."""
    warmup_steps: int = 50
    share: float = 0.25
    """Of each decoder layer's input directions, which stay as they are."""
    texts: int = 100
    seed: int = 0
    eval_freq: int = 250
    save_freq: int = 50
    val_samples: int = 300
    cache_dir: Path = field(default_factory=default_cache_dir)


class WordReader(nn.Module):
    """Vision tower and projector; `forward` gives how far image tokens are from the words of what they show.

    An image token's target is the sum of the word embeddings of every colour and shape in its cell. Only the span of
    those words counts: in all other directions the projector may carry what it likes.
    """

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.vision_tower, self.projector = vlm.vision_tower, vlm.projector
        tokenizer = vlm.processor.tokenizer
        words = [*_COLORS, *_SHAPES, "zone", "bowl"]
        ids = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
        embedding = vlm.model.get_input_embeddings().weight.detach()
        self.words_WD = torch.stack([embedding[each].mean(0) for each in ids])
        self.read_WD = torch.linalg.pinv(self.words_WD).T

    def forward(self, pixel_values: Tensor, counts_BPW: Tensor) -> Tensor:
        features_BPD = see(self.vision_tower, self.projector, pixel_values)
        found_BPW = features_BPD @ self.read_WD.T
        return (found_BPW - counts_BPW).square().sum(-1).mean()


def see(vision_tower: nn.Module, projector: nn.Module, pixel_values: Tensor) -> Tensor:
    """Image tokens (B, P, D) of pictures (B, 3, H, W)."""
    patches = torch.ones(len(pixel_values), 6, 6, dtype=torch.bool)
    return projector(vision_tower(pixel_values=pixel_values, patch_attention_mask=patches).last_hidden_state)


def word_counts(scenes: list[SceneImage], grid: int) -> Tensor:
    """How often each word is true of each cell, (B, grid^2, words)."""
    counts = torch.zeros(len(scenes), grid * grid, len(_COLORS) + len(_SHAPES) + 2)

    def cell(place: tuple[float, float]) -> int:
        column, row = (min(max(int(part * grid), 0), grid - 1) for part in place)
        return row * grid + column

    for row, photo in enumerate(scenes):
        for thing in photo.scene.objects:
            counts[row, cell(photo.place(thing)), _COLORS.index(thing.color)] += 1
            counts[row, cell(photo.place(thing)), len(_COLORS) + _SHAPES.index(thing.shape)] += 1
        for zone in photo.scene.zones:
            counts[row, cell(photo.place(zone)), -2] += 1
            counts[row, cell(photo.place(zone)), _COLORS.index(zone.color)] += 0.5
        if photo.scene.bowl is not None:
            counts[row, cell(photo.place(photo.scene.bowl)), -1] += 1
    return counts


@dataclass(frozen=True)
class Packed:
    """B images with questions behind each, as tensors (B, T): block 0 is what all share, -1 padding."""

    pixel_values: Tensor
    input_ids: Tensor
    position_ids: Tensor
    blocks: Tensor
    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> "Packed":
        return Packed(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def attention_mask(self) -> Tensor:
        """(B, 1, T, T): each token sees the shared part and its own block, up to itself."""
        query, key = self.blocks.unsqueeze(2), self.blocks.unsqueeze(1)
        order = torch.arange(self.blocks.shape[1], device=self.blocks.device)
        seen = ((key == 0) | (key == query)) & (order.unsqueeze(1) >= order)
        return seen.unsqueeze(1)


class Batches:
    """Packed batches, each a function of (seed, step) alone."""

    def __init__(self, vlm: VLMBackbone, scenes: SceneImages, cfg: BuildConfig) -> None:
        self.vlm, self.scenes, self.cfg = vlm, scenes, cfg
        tokenizer = vlm.processor.tokenizer
        image = "<fake_token_around_image><global-img>" + "<image>" * vlm.processor.image_seq_len
        self.shared = self._ids(f"<|im_start|>user\n{image}<fake_token_around_image>")
        self.pad = tokenizer.pad_token_id

    def _ids(self, text: str) -> list[int]:
        return self.vlm.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _scenes(self, step: int, size: int) -> list[SceneImage]:
        epoch, position = divmod(step, len(self.scenes) // size)
        order = np.random.default_rng([self.cfg.seed, epoch]).permutation(len(self.scenes))
        return [self.scenes[int(index)] for index in order[position * size : (position + 1) * size]]

    def _pixels(self, scenes: list[SceneImage]) -> Tensor:
        images = [torch.from_numpy(scene.image).permute(2, 0, 1) for scene in scenes]
        return self.vlm.processor.image_processor(images, return_tensors="pt")["pixel_values"].flatten(0, 1)

    def words_at(self, step: int) -> tuple[Tensor, Tensor]:
        scenes = self._scenes(step, self.cfg.vision_batch_size)
        return self._pixels(scenes), word_counts(scenes, int(self.vlm.processor.image_seq_len**0.5))

    def at(self, step: int) -> tuple[Packed]:
        scenes = self._scenes(step, self.cfg.batch_size)
        rng = np.random.default_rng([self.cfg.seed, 1, step])
        rows = [self._row(scene, rng) for scene in scenes]
        ids, positions, blocks, labels, weights = (
            pad_sequence([torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=fill)
            for part, fill in enumerate((self.pad, 0, -1, -100, 0.0))
        )
        return (Packed(self._pixels(scenes), ids, positions, blocks, labels, weights),)

    def _row(self, scene: SceneImage, rng: np.random.Generator) -> tuple[list[Any], ...]:
        start = len(self.shared)
        ids, positions, blocks = list(self.shared), list(range(start)), [0] * start
        labels, weights = [-100] * start, [0.0] * start
        asked = ask(scene.scene, rng, types=_ASKED, n=self.cfg.questions, place=scene.place)
        for number, question in enumerate(asked, start=1):
            short = _SHORT if rng.random() < 0.4 else ""
            prompt = self._ids(f"{question.text}{short}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._ids(f"{question.answer}<|im_end|>")
            ids += prompt + answer
            positions += range(start, start + len(prompt) + len(answer))
            blocks += [number] * (len(prompt) + len(answer))
            labels += [-100] * len(prompt) + answer
            weights += [0.0] * len(prompt) + [1 / len(answer)] * len(answer)
        return ids, positions, blocks, labels, weights


class AnswerLoss(nn.Module):
    """Mean cross-entropy over answers."""

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.model, self.vision_tower, self.projector = vlm.model, vlm.vision_tower, vlm.projector

    def forward(self, batch: Packed) -> Tensor:
        seen = see(self.vision_tower, self.projector, batch.pixel_values)
        with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16):
            hidden = self.model.model(
                input_ids=batch.input_ids,
                image_hidden_states=seen,
                attention_mask=batch.attention_mask(),
                position_ids=batch.position_ids,
                use_cache=False,
            ).last_hidden_state.float()
        wanted = batch.labels[:, 1:] != -100
        logits = self.model.get_output_embeddings()(hidden[:, :-1][wanted])
        losses = nn.functional.cross_entropy(logits.float(), batch.labels[:, 1:][wanted], reduction="none")
        weights = batch.weights[:, 1:][wanted]
        return (weights * losses).sum() / weights.sum()


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


def _optimizer(vlm: VLMBackbone, cfg: BuildConfig, folder: Path) -> ProjectedAdamW:
    layers = _decoder(vlm)
    projector = LowRankProjector(layers, text_blocks(vlm, cfg, folder / "texts.safetensors"))
    vision = [*vlm.vision_tower.parameters(), *vlm.projector.parameters()]
    return ProjectedAdamW(
        [{"params": [x.weight for x in layers.values()]}, {"params": vision}],
        projector,
        lr=cfg.lr,
        betas=(0.9, 0.98),
        weight_decay=0.0,
    )


@dataclass(frozen=True)
class _TwoRates(Schedule):
    """The vision side three times as fast."""

    def set(self, optimizers: Any, step: int) -> None:
        super().set(optimizers, step)
        for optimizer in optimizers:
            optimizer.param_groups[1]["lr"] = 3 * optimizer.param_groups[0]["lr"]


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
    _learn_words(vlm, batches, cfg, folder, settings)
    for layer in _decoder(vlm).values():
        layer.weight.requires_grad_(True)
    vlm.vision_tower.requires_grad_(True)
    vlm.projector.requires_grad_(True)
    optimizer = _optimizer(vlm, cfg, folder)
    learning = _Learning(vlm)
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
        AnswerLoss(vlm),
        batches.at,
        _TwoRates(cfg.lr, cfg.warmup_steps, cfg.steps),
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

    def __init__(self, vlm: VLMBackbone) -> None:
        super().__init__()
        self.decoder, self.vision_tower, self.projector = vlm.decoder_layers, vlm.vision_tower, vlm.projector

    def named_parameters(self, *args: Any, **options: Any) -> Any:
        return ((name, p) for name, p in super().named_parameters(*args, **options) if p.requires_grad)


def _learn_words(
    vlm: VLMBackbone, batches: Batches, cfg: BuildConfig, folder: Path, settings: dict[str, Any]
) -> None:
    vlm.vision_tower.requires_grad_(True)
    vlm.projector.requires_grad_(True)
    reader = WordReader(vlm)
    optimizer = torch.optim.AdamW(reader.parameters(), lr=cfg.vision_lr, weight_decay=0.0)
    seen = ("scenes", "vision_steps", "vision_batch_size", "vision_lr", "warmup_steps", "seed")
    its_own = {name: settings[name] for name in seen}
    state = TrainingState(folder / "vision.safetensors", reader, [optimizer], its_own)
    take_steps(
        "words",
        reader,
        batches.words_at,
        Schedule(cfg.vision_lr, cfg.warmup_steps, cfg.vision_steps),
        [optimizer],
        state,
        Accelerator(cpu=not torch.cuda.is_available()),
        begun=state.load() or (0, 0.0),
        save_freq=cfg.save_freq * 5,
    )


if __name__ == "__main__":
    main()
