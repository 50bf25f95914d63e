"""`aegis-anchor`: one pass of a pretrained VLM over VQA samples -> the static anchor that AEGIS protects.

The samples go through the model's own processor and prompt, image and question together. `gaussian` streams the moments
of every decoder layer's output over all valid tokens (arXiv 2604.16067 uses 3,000 VQAv2 samples); `subspace` and
`kronecker` stream sketches of what goes through every linear layer while the model reads its own answers, and
`kronecker` takes one backward pass, of answers drawn from the model's own predictions, for its Fisher information.
`fisher` does that for single weights, one sample at a time.
No label is read: the anchor is about what the model knows, right or wrong.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import batched, islice
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn
from tqdm import tqdm

from aegis_eval.benchmarks import BENCHMARKS, load_samples
from aegis_eval.devices import torch_device
from aegis_policy import cli
from aegis_policy.errors import AegisError
from aegis_policy.isolation import Anchor, FactorAccumulator, GaussianAnchor, MomentAccumulator
from aegis_policy.vlm import NO_LABEL, VLMBackbone

ImageQuestion = tuple[np.ndarray, str]
KINDS = ("gaussian", "subspace", "kronecker", "fisher")


@dataclass
class AnchorConfig:
    """Flags of `aegis-anchor`.

    Attributes:
        vlm: directory or hub id of the pretrained VLM, or `embedded`.
        vqa: a benchmark of this package (its training split is used), or a folder with a `questions.jsonl` whose
            lines are {"image": file in that folder, "question": text}.
        kinds: what to gather: `gaussian`, `subspace`, `kronecker` (which brings what `subspace` needs), and `fisher`
            for `--policy.protection=ewc`, as large as the model.
        rank: eigenpairs kept for each side of a linear layer.
        samples: how many image-question pairs; a folder that holds fewer gives all it has.
        out: the anchor's file, replaced once the new one is complete.
        batch_size: pairs at a time.
        seed: another seed takes other samples of a benchmark.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    vlm: str = "embedded"
    vqa: str = "tabletop"
    kinds: list[str] = field(default_factory=lambda: ["gaussian", "kronecker"])
    rank: int = 256
    samples: int = 3_000
    out: Path = Path("anchor.safetensors")
    batch_size: int = 32
    seed: int = 0
    device: str | None = None
    cache_dir: Path | None = None


def main() -> None:
    """Entry point of `aegis-anchor`."""
    cli.run(AnchorConfig, make_anchor)


def make_anchor(config: AnchorConfig) -> Anchor:
    """Write the anchor of a VLM and name the file.

    Raises:
        AegisError: the VLM or the VQA samples cannot be read, or a flag cannot be.
    """
    for name, least in (("samples", 1), ("batch_size", 1), ("rank", 1), ("seed", 0)):
        if getattr(config, name) < least:
            raise AegisError(f"--{name}={getattr(config, name)} must be at least {least}.")
    if not config.kinds or set(config.kinds) - set(KINDS):
        raise AegisError(f"--kinds={config.kinds} must name one or more of {', '.join(KINDS)}.")
    device = torch_device(config.device)
    vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm").to(device)
    anchor = build_anchor(
        vlm,
        _pairs(config),
        kinds=config.kinds,
        rank=config.rank,
        source=config.vqa,
        batch_size=config.batch_size,
        total=config.samples,
        seed=config.seed,
    )
    anchor.save(config.out)
    size = config.out.stat().st_size / 1e6
    print(
        f"wrote {config.out}: {', '.join(config.kinds)} from {anchor.metadata['samples']} samples, {size:.1f} MB"
    )
    return anchor


def build_anchor(
    vlm: VLMBackbone,
    pairs: Iterable[ImageQuestion],
    *,
    kinds: Collection[str],
    source: str,
    batch_size: int,
    rank: int = 256,
    total: int | None = None,
    seed: int = 0,
) -> Anchor:
    """The anchor of a VLM over (image (H, W, 3) uint8, question) pairs.

    Raises:
        AegisError: a part of the model never took part, or computed values that are not finite.

    Memory: for each linear layer (D inputs, E outputs) 24 `rank` (D + E) bytes of sketches, or 12 D^2 where D is not
    wider than twice the rank, and the activations of one batch.
    """
    gathered = _Gathered(vlm.eval(), kinds, rank, seed)
    count = 0
    with tqdm(total=total, desc="aegis-anchor", unit="sample") as bar:
        for batch in batched(pairs, batch_size):
            gathered.add(*zip(*batch, strict=True))
            count += len(batch)
            bar.update(len(batch))
    metadata = {
        "vlm": vlm.name,
        "fingerprint": vlm.fingerprint(),
        "samples": str(count),
        "source": source,
        "kinds": ",".join(kinds),
        "rank": str(rank),
        "seed": str(seed),
        "tokens": "all valid tokens of image and question; for covariances those of the model's own answer too",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    try:
        return gathered.anchor(metadata)
    except ValueError as error:
        raise AegisError(f"The anchor of {vlm.name} cannot be made: {error}") from error


class _Gathered:
    """Statistics of a VLM over the batches added so far."""

    def __init__(self, vlm: VLMBackbone, kinds: Collection[str], rank: int, seed: int) -> None:
        self.vlm = vlm
        self.moments = [MomentAccumulator() for _ in range(vlm.num_layers)] if "gaussian" in kinds else []
        self.backward = "kronecker" in kinds
        layers = vlm.linear_layers if {"subspace", "kronecker"} & set(kinds) else {}
        prefix = vlm.family.decoder_layers
        decoder = {name: layer for name, layer in layers.items() if name.startswith(prefix)}
        vision = {name: layer for name, layer in layers.items() if name not in decoder}
        self.decoder, self.vision = (
            FactorAccumulator(part, rank, outputs=self.backward, seed=seed) for part in (decoder, vision)
        )
        self.fisher = (
            {name: torch.zeros_like(p) for name, p in _weights(vlm).items()} if "fisher" in kinds else {}
        )
        self.generator = torch.Generator().manual_seed(seed)

    def add(self, images: Sequence[np.ndarray], questions: Sequence[str]) -> None:
        """Take one batch in."""
        if self.moments:
            with torch.no_grad():
                prefix = self.vlm.encode(self.vlm.question_inputs(images, questions))
            for accumulator, hidden in zip(self.moments, prefix.hidden_states, strict=True):
                accumulator.update(hidden, prefix.mask)
        if not self.decoder.layers and not self.fisher:
            return
        answers = self.vlm.answer(images, questions)
        if self.decoder.layers:
            self._add_factors(self.vlm.answer_inputs(images, questions, answers))
        if self.fisher:
            for image, question, answer in zip(images, questions, answers, strict=True):
                self._add_fisher(self.vlm.answer_inputs([image], [question], [answer]))

    def _add_factors(self, inputs: dict[str, Tensor]) -> None:
        # Every layer's outputs depend on the pixels: their gradient is one that passes through all of them.
        inputs["pixel_values"].requires_grad_(self.backward)
        with (
            self.decoder.collect(inputs["attention_mask"]),
            self.vision.collect(),
            torch.set_grad_enabled(self.backward),
        ):
            loss = self._loss_of_drawn_answers(inputs)
            if self.backward:
                torch.autograd.grad(loss, inputs["pixel_values"])

    def _add_fisher(self, inputs: dict[str, Tensor]) -> None:
        weights = list(_weights(self.vlm).values())
        gradients = torch.autograd.grad(self._loss_of_drawn_answers(inputs), weights, allow_unused=True)
        for total, gradient in zip(self.fisher.values(), gradients, strict=True):
            if gradient is not None:
                total.addcmul_(gradient, gradient)

    def _loss_of_drawn_answers(self, inputs: dict[str, Tensor]) -> Tensor:
        """Of tokens drawn from the model's own predictions: Fisher information is about those, not about labels."""
        logits_NKV, labels_NK = self.vlm.answer_logits(inputs)
        logits_MV = logits_NKV[labels_NK != NO_LABEL].float()
        probabilities = logits_MV.detach().softmax(-1).cpu()
        drawn_M = torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1)
        return torch.nn.functional.cross_entropy(logits_MV, drawn_M.to(logits_MV.device), reduction="sum")

    def anchor(self, metadata: dict[str, str]) -> Anchor:
        """What was gathered."""
        gaussians = {"all": GaussianAnchor.from_accumulators(self.moments)} if self.moments else {}
        importance = {}
        if self.fisher:
            mean = sum(float(f.sum()) for f in self.fisher.values()) / sum(
                f.numel() for f in self.fisher.values()
            )
            importance = {name: fisher.cpu() / mean for name, fisher in self.fisher.items()}
        return Anchor(gaussians, self.decoder.factors() | self.vision.factors(), importance, metadata)


def _weights(vlm: VLMBackbone) -> dict[str, nn.Parameter]:
    """Everything that may ever learn under a protection, by its name in the model."""
    parts = (vlm.vision_tower, vlm.projector, vlm.decoder_layers)
    wanted = {id(p) for part in parts for p in part.parameters()}
    return {name: p for name, p in vlm.model.named_parameters() if id(p) in wanted}


def _pairs(config: AnchorConfig) -> Iterator[ImageQuestion]:
    if config.vqa in BENCHMARKS:
        samples = load_samples(config.vqa, "train", config.samples, config.seed, cache_dir=config.cache_dir)
        return ((sample.image, sample.question) for sample in samples)
    return islice(_folder_pairs(Path(config.vqa)), config.samples)


def _folder_pairs(folder: Path) -> Iterator[ImageQuestion]:
    index = folder / "questions.jsonl"
    if not index.is_file():
        raise AegisError(
            f"--vqa={folder} is neither a benchmark ({', '.join(BENCHMARKS)}) nor a folder with a "
            'questions.jsonl: write one with lines like {"image": "0.png", "question": "what is this?"}.'
        )
    lines = [line for line in index.read_text().splitlines() if line.strip()]
    if not lines:
        raise AegisError(f"{index} is empty: it needs a line for every image-question pair.")
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            with Image.open(folder / record["image"]) as image:
                yield np.array(image.convert("RGB")), str(record["question"])
        except (json.JSONDecodeError, KeyError, TypeError, OSError, UnidentifiedImageError) as error:
            raise AegisError(
                f'{index} line {number} is not usable ({error}): it must be {{"image": a picture file beside it, '
                '"question": text}.'
            ) from error


if __name__ == "__main__":
    main()
