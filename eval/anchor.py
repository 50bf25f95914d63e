"""`aegis-anchor`: one pass of a pretrained VLM over VQA samples -> the static anchor that AEGIS protects.

The samples go through the model's own processor and prompt, image and question together; moments of every decoder
layer's output are streamed over all valid tokens (arXiv 2604.16067 uses 3,000 VQAv2 samples).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import batched, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from aegis_eval.benchmarks import BENCHMARKS, load_samples
from aegis_eval.devices import torch_device
from aegis_policy import cli
from aegis_policy.errors import AegisError
from aegis_policy.isolation import GaussianAnchor, MomentAccumulator
from aegis_policy.vlm import VLMBackbone

ImageQuestion = tuple[np.ndarray, str]


@dataclass
class AnchorConfig:
    """Flags of `aegis-anchor`.

    Attributes:
        vlm: directory or hub id of the pretrained VLM, or `embedded`.
        vqa: a benchmark of this package (its training split is used), or a folder with a `questions.jsonl` whose
            lines are {"image": file in that folder, "question": text}.
        samples: how many image-question pairs; a folder that holds fewer gives all it has.
        out: the anchor's file, replaced once the new one is complete.
        batch_size: pairs at a time.
        seed: another seed takes other samples of a benchmark.
        device: `cuda` or `cpu`, by default CUDA if there is one.
        cache_dir: where rendered scenes are kept, by default `~/.cache/aegis`.
    """

    vlm: str = "embedded"
    vqa: str = "tabletop"
    samples: int = 3_000
    out: Path = Path("anchor.safetensors")
    batch_size: int = 32
    seed: int = 0
    device: str | None = None
    cache_dir: Path | None = None


def main() -> None:
    """Entry point of `aegis-anchor`."""
    cli.run(AnchorConfig, make_anchor)


def make_anchor(config: AnchorConfig) -> GaussianAnchor:
    """Write the anchor of a VLM and name the file.

    Raises:
        AegisError: the VLM or the VQA samples cannot be read.
    """
    for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0)):
        if getattr(config, name) < least:
            raise AegisError(f"--{name}={getattr(config, name)} must be at least {least}.")
    device = torch_device(config.device)
    vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm").to(device)
    anchor = gaussian_anchor(
        vlm, _pairs(config), source=config.vqa, batch_size=config.batch_size, total=config.samples
    )
    anchor.save(config.out)
    print(f"wrote {config.out}: {anchor.num_layers} layers of {anchor.hidden_size}, {anchor.count} tokens")
    return anchor


def gaussian_anchor(
    vlm: VLMBackbone,
    pairs: Iterable[ImageQuestion],
    *,
    source: str,
    batch_size: int,
    total: int | None = None,
) -> GaussianAnchor:
    """Moments of every decoder layer's output over the valid tokens of (image (H, W, 3) uint8, question) pairs."""
    accumulators = [MomentAccumulator() for _ in range(vlm.num_layers)]
    vlm.eval()
    count = 0
    with torch.no_grad(), tqdm(total=total, desc="aegis-anchor", unit="sample") as bar:
        for batch in batched(pairs, batch_size):
            images, questions = zip(*batch, strict=True)
            prefix = vlm.encode(vlm.question_inputs(images, questions))
            for accumulator, hidden in zip(accumulators, prefix.hidden_states, strict=True):
                accumulator.update(hidden, prefix.mask)
            count += len(batch)
            bar.update(len(batch))
    metadata = {"vlm": vlm.name, "fingerprint": vlm.fingerprint(), "samples": str(count), "source": source}
    return GaussianAnchor.from_accumulators(accumulators, metadata)


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
