"""What the real VLM learns from: pictures with packed questions behind them, and the words of what lies in others.

A picture's tokens are read once for all its questions; no question sees another.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from naming import SceneNaming, scene_words, see, things_lying
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from aegis_eval.questions.images import SceneImage
from aegis_eval.questions.store import SceneImages
from aegis_eval.questions.templated import TYPES, ask, scene_caption
from aegis_policy.vlm.backbone import VLMBackbone

if TYPE_CHECKING:
    from build import BuildConfig

_ASKED = (*TYPES, "relation", "relation", "count", "extreme")
"""What takes longest to learn comes up most."""
_SHORT = "\nAnswer the question using a single word or phrase."


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

    def __init__(self, vlm: VLMBackbone, scenes: SceneImages, cfg: "BuildConfig") -> None:
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

    def words_at(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        scenes = self._scenes(step, self.cfg.vision_batch_size)
        return self._pixels(scenes), scene_words(scenes), things_lying(scenes)

    def at(self, step: int) -> tuple[Any, ...]:
        """Of the answers; what is named meanwhile goes on where it was left."""
        scenes = self._scenes(step, self.cfg.batch_size)
        rng = np.random.default_rng([self.cfg.seed, 1, step])
        rows = [self._row(scene, rng) for scene in scenes]
        ids, positions, blocks, labels, weights = (
            pad_sequence([torch.tensor(row[part]) for row in rows], batch_first=True, padding_value=fill)
            for part, fill in enumerate((self.pad, 0, -1, -100, 0.0))
        )
        packed = Packed(self._pixels(scenes), ids, positions, blocks, labels, weights)
        return packed, *self.words_at(self.cfg.vision_steps + step)

    def _row(self, scene: SceneImage, rng: np.random.Generator) -> tuple[list[Any], ...]:
        start = len(self.shared)
        ids, positions, blocks = list(self.shared), list(range(start)), [0] * start
        labels, weights = [-100] * start, [0.0] * start
        asked = ask(scene.scene, rng, types=_ASKED, n=self.cfg.questions, place=scene.place)
        turns = [(each.text, each.answer) for each in asked]
        turns.append(scene_caption(scene.scene, rng, scene.place))
        for number, (question, said) in enumerate(turns, start=1):
            short = _SHORT if number < len(turns) and rng.random() < 0.3 else ""
            prompt = self._ids(f"{question}{short}<|im_end|>\n<|im_start|>assistant\n")
            answer = self._ids(f"{said}<|im_end|>")
            ids += prompt + answer
            positions += range(start, start + len(prompt) + len(answer))
            blocks += [number] * (len(prompt) + len(answer))
            labels += [-100] * len(prompt) + answer
            weights += [0.0] * len(prompt) + [1 / min(len(answer), 4)] * len(answer)
        return ids, positions, blocks, labels, weights


class AnswerLoss(nn.Module):
    """Mean cross-entropy over answers, and beside it what the vision side goes on learning, if it does: `naming`."""

    def __init__(self, vlm: VLMBackbone, naming: SceneNaming) -> None:
        super().__init__()
        self.model, self.naming = vlm.model, naming

    def forward(self, batch: Packed, *named: Tensor) -> Tensor:
        seen = see(self.naming.vision_tower, self.naming.projector, batch.pixel_values)
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
        loss = (weights * losses).sum() / weights.sum()
        return loss + self.naming(*named) if named else loss
