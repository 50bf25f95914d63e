"""`aegis-anchor`: one pass of a pretrained VLM over VQA samples -> the static anchor that AEGIS protects.

The samples go through the model's own processor and prompt, image and question together. `gaussian` streams the moments
of every decoder layer's output over all valid tokens (arXiv 2604.16067 uses 3,000 VQAv2 samples); `subspace` and
`kronecker` stream sketches of what goes through every linear layer while the model reads its own answers, and
`kronecker` takes one backward pass, of answers drawn from the model's own predictions, for its Fisher information.
`fisher` does that for single weights, one sample at a time.
No label is read: the anchor is about what the model knows, right or wrong.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import batched, islice
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from aegis_eval.devices import torch_device
from aegis_eval.results.provenance import package_versions
from aegis_policy.anchors.building import KINDS, AnchorBuilder, RobotFrame
from aegis_policy.isolation import Anchor
from aegis_policy.support import cli
from aegis_policy.support.errors import AegisError
from aegis_policy.support.files import atomic_write
from aegis_policy.vlm.backbone import VLMBackbone
from aegis_policy.vlm.loading import EMBEDDED_VLM
from aegis_policy.vqa.examples import INDEX_FILE, VQAExample, load_vqa

Batch = Sequence[VQAExample] | Sequence[RobotFrame]
_SAVE_SECONDS = 60.0
"""How much of an interrupted pass may have to be done again."""


@dataclass
class AnchorConfig:
    """Flags of `aegis-anchor`.

    Attributes:
        vlm: directory or hub id of the pretrained VLM, or `embedded`.
        vqa: where the samples come from: a benchmark of this package (its training split), a public one with the place
            of its files (`vqav2:DIR`, see docs/benchmarks.md), a folder with a `questions.jsonl` whose lines are
            {"image": file in that folder, "question": text}, the folder of a LeRobotDataset (its frames and
            instructions, as the policy sees them), or several joined by `+`. `tabletop` unless given, of the
            embedded VLM; another one has questions of its own.
        cameras: of a LeRobotDataset, the ones to look through, with commas; all unless given.
        kinds: what to gather: `gaussian`, `subspace`, `kronecker` (which brings what `subspace` needs), and `fisher`
            for `--policy.protection=ewc`, as large as the model. The last two need questions.
        rank: eigenpairs kept for each side of a linear layer.
        samples: how many of each source; one that holds fewer gives all it has.
        out: the anchor's file, replaced once the new one is complete. An interrupted pass is kept beside it, and
            the same command continues it.
        batch_size: samples at a time.
        seed: another seed takes other samples of a benchmark.
        device: `cuda` or `cpu`, by default CUDA if there is one.
    """

    vlm: str = EMBEDDED_VLM
    vqa: str | None = None
    cameras: str | None = None
    kinds: list[str] = field(default_factory=lambda: ["gaussian", "kronecker"])
    rank: int = 256
    samples: int = 3_000
    out: Path = Path("anchor.safetensors")
    batch_size: int = 32
    seed: int = 0
    device: str | None = None


def main() -> None:
    """Entry point of `aegis-anchor`."""
    cli.run(AnchorConfig, make_anchor)


def make_anchor(config: AnchorConfig) -> Anchor:
    """Write the anchor of a VLM and name the file.

    Raises:
        AegisError: the VLM or the samples cannot be read, or a flag cannot be.
    """
    cli.require_at_least(config, samples=1, batch_size=1, rank=1, seed=0)
    if not config.kinds or set(config.kinds) - set(KINDS):
        raise AegisError(f"--kinds={config.kinds} must name one or more of {', '.join(KINDS)}.")
    if config.vqa is None and config.vlm != EMBEDDED_VLM:
        raise AegisError(
            f"--vqa is missing: say what {config.vlm} must go on answering, with --vqa=FOLDER (a questions.jsonl with "
            "its pictures) or --vqa=vqav2:FOLDER (a benchmark's official files)."
        )
    config = replace(config, vqa=config.vqa or "tabletop")
    sources = _sources(config)
    answered = {"kronecker", "fisher"} & set(config.kinds)
    if answered and all(_is_dataset(source) for source in sources):
        raise AegisError(
            f"--kinds={config.kinds} with --vqa={config.vqa}: robot frames have no answers, which {answered.pop()} is "
            "about; take --kinds=[gaussian,subspace], or add questions (--vqa=SOURCE+DATASET)."
        )
    device = torch_device(config.device)
    vlm = VLMBackbone.from_pretrained(config.vlm, flag="--vlm").to(device)
    anchor = _anchor_of(
        vlm,
        _batches(config, sources),
        kinds=config.kinds,
        source=_described(sources),
        rank=config.rank,
        total=config.samples * len(sources),
        seed=config.seed,
        unfinished=_Unfinished(config, vlm.fingerprint()),
    )
    anchor.save(config.out)
    size = config.out.stat().st_size / 1e6
    asked, found = config.samples * len(sources), int(anchor.metadata["samples"])
    fewer = f" ({asked} were asked for: there are no more)" if found < asked else ""
    print(f"wrote {config.out}: {', '.join(_kinds(config))} from {found} samples{fewer}, {size:.1f} MB")
    return anchor


def build_anchor(
    vlm: VLMBackbone,
    examples: Iterable[VQAExample],
    *,
    kinds: Sequence[str],
    source: str,
    batch_size: int,
    rank: int = 256,
    total: int | None = None,
    seed: int = 0,
) -> Anchor:
    """The anchor of a VLM over questions; see `AnchorBuilder` for the memory it takes.

    Raises:
        AegisError: a part of the model never took part, or computed values that are not finite.
    """
    return _anchor_of(
        vlm, batched(examples, batch_size), kinds=kinds, source=source, rank=rank, total=total, seed=seed
    )


class _Unfinished:
    """A pass that was interrupted: its builder's state in a file beside the anchor's."""

    def __init__(self, config: AnchorConfig, fingerprint: str) -> None:
        self.path = config.out.with_name(f".{config.out.name}.unfinished")
        self._pass = json.dumps(
            [
                fingerprint,
                _described(_sources(config)),
                package_versions(),
                *(
                    getattr(config, name)
                    for name in ("cameras", "kinds", "rank", "samples", "batch_size", "seed")
                ),
            ]
        )
        self._saved = time.monotonic()

    def restore(self, builder: AnchorBuilder) -> tuple[int, int]:
        """How many batches and samples of this very pass are in `builder` now; 0 if none were kept."""
        try:
            with safe_open(self.path, framework="pt") as file:
                noted = file.metadata() or {}
                if noted.get("pass") != self._pass:
                    return 0, 0
                builder.load_state({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError):
            return 0, 0
        return int(noted["batches"]), int(noted["samples"])

    def save(self, builder: AnchorBuilder, batches: int, samples: int) -> None:
        """Keep the state, if the last time was a while ago."""
        if time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        state = {name: x.cpu().contiguous().clone() for name, x in builder.state().items()}
        with atomic_write(self.path) as beside:
            save_file(state, beside, {"pass": self._pass, "batches": str(batches), "samples": str(samples)})
        self._saved = time.monotonic()

    def discard(self) -> None:
        """The pass is finished."""
        self.path.unlink(missing_ok=True)


def _anchor_of(
    vlm: VLMBackbone,
    batches: Iterable[Batch],
    *,
    kinds: Sequence[str],
    source: str,
    rank: int,
    total: int | None,
    seed: int,
    unfinished: _Unfinished | None = None,
) -> Anchor:
    builder = AnchorBuilder(vlm, kinds, rank, seed)
    number, count = unfinished.restore(builder) if unfinished else (0, 0)
    with tqdm(total=total, initial=count, desc="aegis-anchor", unit="sample") as bar:
        for batch in islice(batches, number, None):
            _add(builder, batch, number)
            number, count = number + 1, count + len(batch)
            bar.update(len(batch))
            if unfinished:
                unfinished.save(builder, number, count)
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
    anchor = builder.anchor(metadata)
    if unfinished:
        unfinished.discard()
    return anchor


def _add(builder: AnchorBuilder, batch: Batch, number: int) -> None:
    frames = [each for each in batch if isinstance(each, RobotFrame)]
    if frames:
        builder.add_frames(frames)
    else:
        builder.add_questions([each for each in batch if isinstance(each, VQAExample)], number)


def _batches(config: AnchorConfig, sources: Sequence[str]) -> Iterator[Batch]:
    for source in sources:
        if _is_dataset(source):
            frames = _robot_frames(Path(source), config.samples, config.cameras)
            yield from batched(frames, config.batch_size)
        else:
            examples = load_vqa(source, "--vqa", count=config.samples, seed=config.seed)
            yield from batched(examples, config.batch_size)


def _is_dataset(source: str) -> bool:
    return (Path(source) / "meta" / "info.json").is_file()


def _robot_frames(folder: Path, count: int, wanted: str | None) -> Iterator[RobotFrame]:
    """Frames spread evenly over a LeRobotDataset, its cameras in their order there."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    dataset = LeRobotDataset(f"local/{folder.name}", root=folder)
    cameras = dataset.meta.camera_keys
    if wanted is not None:
        chosen = [f"observation.images.{camera}" for camera in wanted.split(",")]
        if missing := [camera for camera in chosen if camera not in cameras]:
            raise AegisError(
                f"--cameras={wanted}: {folder} has no {missing[0]}; its cameras are {', '.join(cameras)}."
            )
        cameras = [camera for camera in cameras if camera in chosen]
    if not cameras:
        raise AegisError(f"--vqa={folder} is a dataset without a camera: there is nothing to see in it.")
    for index in torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().int().tolist():
        frame = dataset[index]
        yield RobotFrame(tuple(frame[camera] for camera in cameras), frame["task"])


def _sources(config: AnchorConfig) -> list[str]:
    assert config.vqa is not None
    return config.vqa.split("+")


def _kinds(config: AnchorConfig) -> list[str]:
    """What `--policy.anchor` may name of the file, and `fisher`."""
    return sorted({*config.kinds, *(["subspace"] if "kronecker" in config.kinds else [])})


def _described(sources: Sequence[str]) -> str:
    return "+".join(f"{source} ({_revision(source)})" for source in sources)


def _revision(source: str) -> str:
    """What tells two states of a source apart: a hash of its index, or of its files' names, sizes and times; or the
    version of the package that offers it."""
    index = Path(source) / ("meta/info.json" if _is_dataset(source) else INDEX_FILE)
    if index.is_file():
        return hashlib.sha256(index.read_bytes()).hexdigest()[:16]
    place = Path(source.partition(":")[2])
    if ":" in source and place.is_dir():
        files = sorted(each for each in place.rglob("*") if each.suffix in (".json", ".parquet", ".arrow"))
        digest = hashlib.sha256()
        for each in files:
            digest.update(
                f"{each.relative_to(place)} {each.stat().st_size} {each.stat().st_mtime_ns}\n".encode()
            )
        return digest.hexdigest()[:16]
    versions = package_versions()
    return f"lerobot_policy_aegis {versions.get('lerobot_policy_aegis', 'unknown')}"


if __name__ == "__main__":
    main()
